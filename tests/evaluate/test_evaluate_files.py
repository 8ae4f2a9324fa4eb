import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lesion_cases import AFFINE, bar, fill

from medfocal.errors import ConfigError, DatasetError, GeometryError, InputError
from medfocal.evaluate import Protocol, evaluate_files
from medfocal.evaluate.pairs import find_pairs
from medfocal.volume import Volume, write_volume

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path, boxes, *, affine=AFFINE, dtype=np.uint8):
    path.parent.mkdir(exist_ok=True)
    write_volume(path, Volume(fill(boxes).astype(dtype), affine))


@pytest.fixture
def folders(tmp_path):
    """Two cases: one of two lesions found in `a`, one false candidate in `b`."""
    write(tmp_path / "reference" / "a.nii.gz", [(bar(1, 3), 1), (bar(6, 9), 2)])
    write(tmp_path / "reference" / "b.nii.gz", [])
    write(tmp_path / "prediction" / "a_mask.nii.gz", [(bar(2, 4), 1)])
    write(tmp_path / "prediction" / "b_mask.nii.gz", [(bar(2, 4), 1)])
    return tmp_path / "reference", tmp_path / "prediction"


def test_folders_are_paired_by_case_and_counted(folders):
    evaluation = evaluate_files(*folders)
    assert [row["case"] for row in evaluation.cases] == ["a", "b"]
    assert [row["patient"] for row in evaluation.cases] == ["a", "b"]
    assert (evaluation.num_lesions, evaluation.num_detected_lesions, evaluation.num_false_candidates) == (2, 1, 1)


def test_probability_maps_are_predictions_too(folders):
    reference, prediction = folders
    (prediction / "a_mask.nii.gz").unlink()
    write(prediction / "a_probability.nii.gz", [(bar(2, 4), 0.25), (bar(6, 8), 0.5)], dtype=np.float32)
    evaluation = evaluate_files(reference, prediction, protocol=Protocol(threshold=0.5))
    assert [row["confidence"] for row in evaluation.lesions] == [0.25, 0.5]
    assert evaluation.num_detected_lesions == 1


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a_mask.nii.gz", "a_label.nii.gz", "a_probability.nii"])
def test_case_is_the_file_name_without_ending_and_tail(tmp_path, name):
    write(tmp_path / "reference" / "a_label.nii.gz", [])
    write(tmp_path / "prediction" / name, [])
    assert [pair.case for pair in find_pairs(tmp_path / "reference", tmp_path / "prediction")] == ["a"]


def test_only_one_tail_is_taken_off(tmp_path):
    write(tmp_path / "reference" / "a_mask.nii.gz", [])
    write(tmp_path / "prediction" / "a_mask_mask.nii.gz", [])
    with pytest.raises(DatasetError, match="references have no prediction"):
        find_pairs(tmp_path / "reference", tmp_path / "prediction")


def test_other_files_and_hidden_files_are_no_cases(folders):
    reference, prediction = folders
    (prediction / "a_candidates.csv").write_text("case\n")
    (prediction / "run.json").write_text("{}")
    (prediction / ".c_mask.nii.gz").write_text("")
    assert len(find_pairs(reference, prediction)) == 2


def test_two_files_are_paired_whatever_their_names(folders):
    reference, prediction = folders
    evaluation = evaluate_files(reference / "a.nii.gz", prediction / "b_mask.nii.gz")
    assert (evaluation.cases[0]["case"], evaluation.num_detected_lesions) == ("a", 1)


def test_two_predictions_of_a_case_are_refused_by_name(folders):
    reference, prediction = folders
    write(prediction / "a_probability.nii.gz", [])
    with pytest.raises(
        DatasetError, match=r"'a_mask.nii.gz' and 'a_probability.nii.gz' .* both a prediction of case 'a'"
    ):
        evaluate_files(reference, prediction)


def test_a_pattern_chooses_between_two_predictions_of_a_case(folders):
    reference, prediction = folders
    write(prediction / "a_probability.nii.gz", [])
    pairs = find_pairs(reference, prediction / "*_mask.nii.gz")
    assert [pair.prediction.name for pair in pairs] == ["a_mask.nii.gz", "b_mask.nii.gz"]
    with pytest.raises(DatasetError, match="there is no image in"):
        find_pairs(reference, prediction / "*_nothing.nii.gz")


def test_reference_without_prediction_is_refused_by_name(folders):
    reference, prediction = folders
    (prediction / "b_mask.nii.gz").unlink()
    match = r"1 of 2 references have no prediction in .*: b.nii.gz; it holds a_mask.nii.gz\. Predict them"
    with pytest.raises(DatasetError, match=match):
        evaluate_files(reference, prediction)


def test_prediction_without_reference_is_refused_by_name(folders):
    reference, prediction = folders
    write(prediction / "c_mask.nii.gz", [])
    with pytest.raises(DatasetError, match=r"1 of 3 predictions have no reference in .*: c_mask.nii.gz\. Add"):
        evaluate_files(reference, prediction)


def test_message_names_ten_files_and_counts_the_others(tmp_path):
    for number in range(13):
        write(tmp_path / "reference" / f"c{number:02}.nii", [])
    write(tmp_path / "prediction" / "c00.nii", [])
    with pytest.raises(DatasetError, match=r"c01.nii, .*, c10.nii and 2 more"):
        find_pairs(tmp_path / "reference", tmp_path / "prediction")


def test_empty_folder_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"there is no image in .*empty', given as prediction"):
        evaluate_files(folders[0], tmp_path / "empty")


def test_missing_folder_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match=r"the reference .*nowhere' does not exist"):
        evaluate_files(tmp_path / "nowhere", folders[1])


def test_other_grid_is_refused_with_case_both_files_and_both_values(folders):
    reference, prediction = folders
    write(prediction / "b_mask.nii.gz", [], affine=AFFINE @ np.diag([1, 1, 2, 1]))
    match = r"case 'b': .*b.nii.gz' and '.*b_mask.nii.gz' differ: spacing \(0.5, 1, 3\) and \(0.5, 1, 6\) mm"
    with pytest.raises(GeometryError, match=match):
        evaluate_files(reference, prediction)


def test_grid_that_differs_by_rounding_is_the_same(folders):
    reference, prediction = folders
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.004
    write(prediction / "b_mask.nii.gz", [], affine=shifted)
    assert evaluate_files(reference, prediction).num_cases == 2


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.5"), (-0.5, "-0.5"), (np.nan, "nan")])
def test_value_that_is_no_probability_is_refused_with_file_and_value(folders, value, said):
    reference, prediction = folders
    write(prediction / "b_mask.nii.gz", [(bar(1, 2), 0.3), (bar(4, 5), value)], dtype=np.float32)
    with pytest.raises(InputError, match=f"case 'b': '.*b_mask.nii.gz' holds {said}"):
        evaluate_files(reference, prediction)


def test_manifest_names_patients_of_folders(folders, tmp_path):
    manifest = tmp_path / "patients.csv"
    manifest.write_text("case,patient\nb,p1\na,p1\n")
    evaluation = evaluate_files(*folders, manifest=manifest)
    assert [row["patient"] for row in evaluation.cases] == ["p1", "p1"]
    assert evaluation.num_patients == 1


@pytest.mark.usefixtures("folders")
def test_manifest_names_files_relative_to_itself(tmp_path):
    manifest = tmp_path / "pairs.csv"
    lines = ["case,patient,reference,prediction", "x,p1,reference/a.nii.gz,prediction/b_mask.nii.gz"]
    manifest.write_text("\n".join(lines))
    evaluation = evaluate_files(None, None, manifest=manifest)
    assert (evaluation.cases[0]["case"], evaluation.cases[0]["patient"]) == ("x", "p1")
    assert evaluation.num_lesions == 2


def test_files_named_by_manifest_and_by_argument_are_refused(folders, tmp_path):
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("case,reference,prediction\na,reference/a.nii.gz,prediction/a_mask.nii.gz\n")
    with pytest.raises(ConfigError, match="Give one or the other"):
        evaluate_files(*folders, manifest=manifest)


def test_no_files_at_all_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a reference and a prediction are needed"):
        evaluate_files(tmp_path, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,patient\na,p1\n", "1 cases are not in the manifest .*: b"),
        ("case,patient\na,p1\nb,p2\nc,p3\n", "1 cases of the manifest .* have no files: c"),
        ("case,patient\na,p1\nb,\n", "line 3 of the manifest .* has not one value for each of case, patient"),
        ("case,patient\na,p1\na,p2\n", "names cases more than once: a"),
        ("case,subject\na,p1\n", "has the columns case, subject. It needs 'case'"),
        ("case,reference\na,x\n", "has the columns case, reference"),
        ("case,patient\n", "names no case"),
        ("case,patient\na,p1,extra\n", "line 2 of the manifest"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(folders, tmp_path, text, said):
    manifest = tmp_path / "patients.csv"
    manifest.write_text(text)
    with pytest.raises(DatasetError, match=said):
        evaluate_files(*folders, manifest=manifest)


def test_missing_manifest_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match=r"the manifest .*none.csv' cannot be read"):
        evaluate_files(*folders, manifest=tmp_path / "none.csv")


def test_evaluating_masks_never_imports_torch(folders):
    reference, prediction = folders
    program = (
        "import sys; from pathlib import Path; from medfocal.evaluate import evaluate_files;"
        "evaluation = evaluate_files(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(evaluation.num_cases, sorted({'torch', 'monai', 'hydra'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, reference, prediction], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[0] == "2 []"


def test_published_case_gives_its_published_answers():
    """5 x 5 x 5 pair: Dice 6/14, lesion TPR 2/3, lesion FDR 1/3."""
    if not SHARED.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    folder = SHARED / "lesion_metrics_case"
    evaluation = evaluate_files(folder / "truth" / "truth.nii.gz", folder / "pred" / "pred.nii.gz")
    assert evaluation.voxel_dice.mean == pytest.approx(6 / 14)
    assert evaluation.lesion_sensitivity.value == pytest.approx(2 / 3)
    assert evaluation.lesion_precision.value == pytest.approx(1 - 1 / 3)


def test_real_mask_against_itself_finds_every_lesion():
    if not SHARED.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    masks = sorted((SHARED / "ms_masks").rglob("*.nii*"))
    evaluation = evaluate_files(masks[0], masks[0])
    assert evaluation.num_lesions >= 17
    assert evaluation.lesion_sensitivity.value == evaluation.lesion_precision.value == evaluation.voxel_dice.mean == 1
