"""`medfocal suspect` from files to the page, and what it refuses."""

import csv
import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from commands import assert_refused, run

from medfocal.volume import Volume, read_volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
OUTPUTS = {"suspect.csv", "cases.csv", "suspect.json", "suspect.html", "weights"}
WORDS = ("suspect", "reference=labels", "prediction=maps", "output=o")


@pytest.fixture
def files(tmp_path):
    """Two cases: one of a missed and a spurious lesion, and one without any lesion."""
    label, probability = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.001, np.float32)
    label[1:3, 1:3, 1] = label[9:11, 1:3, 1] = label[1:3, 7:9, 1] = 1
    probability[1:3, 1:3, 1], probability[9:11, 1:3, 1], probability[9:11, 7:9, 1] = 0.8, 0.9, 0.95
    faint = np.full(SHAPE, 0.001, np.float32)
    faint[2, 2, 2], faint[2, 2, 6], faint[8, 2, 2], faint[8, 8, 6] = 0.02, 0.03, 0.04, 0.05
    write(tmp_path, "a", label, probability)
    write(tmp_path, "b", np.zeros_like(label), faint)
    return tmp_path


def write(folder, case, label, probability):
    write_volume(folder / "labels" / f"{case}.nii.gz", Volume(label, AFFINE))
    write_volume(folder / "maps" / f"{case}_probability.nii.gz", Volume(probability, AFFINE))
    write_volume(folder / "images" / f"{case}.nii.gz", Volume(probability, AFFINE))


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_suspects_are_ranked_weighed_shown_and_told(files):
    ended = run(*WORDS, "images=images", "rules.suspect_weight=0.25", folder=files)
    assert (ended.code, ended.err) == (0, "")
    output = files / "o"
    assert {path.name for path in output.iterdir()} == OUTPUTS
    table = rows(output / "suspect.csv")
    # Lesions .001, .8, .9 and lonely candidates .95, .05 and less. Spurious: p_background 1, p_lesion 1 / 3. Missed,
    # by the other two lesions: 2 (1 + 2) / 3 = 2, against 1.
    assert [(row["kind"], row["case"], float(row["score"])) for row in table[:2]] == [
        ("spurious", "a", pytest.approx(3 / 4)),
        ("missed", "a", pytest.approx(2 / 3)),
    ]
    assert [float(table[1][key]) for key in ("x_mm", "y_mm", "z_mm")] == pytest.approx([4.75, 7.5, 3])
    wanted = np.ones(SHAPE, np.float32)
    wanted[1:3, 7:9, 1] = wanted[9:11, 7:9, 1] = 0.25
    np.testing.assert_array_equal(read_volume(output / "weights" / "a_weight.nii.gz").array, wanted)
    assert (read_volume(output / "weights" / "b_weight.nii.gz").array == 1).all()
    assert [row["case"] for row in rows(output / "cases.csv")] == ["a", "b"]
    assert json.loads((output / "suspect.json").read_text("utf-8"))["rules"]["suspect_weight"] == 0.25

    assert "2 suspects    missed    1 weigh 0.25" in ended.out
    assert re.search(r"1  spurious  a      0\.75       0\.001  0\.8, 7\.5, 3\.0", ended.out)
    for name in ("suspect.html", "suspect.csv", "weights"):
        assert f"o/{name}" in ended.out


def test_the_page_asks_about_each_suspect_with_pictures_and_fetches_nothing(files):
    assert run(*WORDS, "images=images", folder=files).code == 0
    page = (files / "o" / "suspect.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", page)
    assert page.count('<article class="finding"') == len(rows(files / "o" / "suspect.csv"))
    for rank, question in ((1, "Is it one?"), (2, "Is there one?")):
        article = page.split(f'<article class="finding" id="suspect-{rank}">')[1].split("</article>")[0]
        assert question in article
        assert article.count('<figure class="plane">') == 4
        # The spurious lesion has the outline of the label, the missed one that of its candidate.
        role = {1: "reference", 2: "predicted"}[rank]
        assert all(f'class="outline {role}"' in plane for plane in article.split("<figure")[1:4])


def test_no_more_pictures_than_asked_for_and_none_without_images(files):
    assert run(*WORDS, "images=images", "max_pictures=1", folder=files).code == 0
    page = (files / "o" / "suspect.html").read_text("utf-8")
    assert page.count("<article") == 1
    assert f"The first 1 of {len(rows(files / 'o' / 'suspect.csv'))} are shown here" in page
    assert run(*WORDS, folder=files).code == 0
    page = (files / "o" / "suspect.html").read_text("utf-8")
    assert "<figure" not in page
    assert "No picture" in page


def test_a_manifest_names_files_and_patients(files):
    lines = ["case,patient,reference,prediction", "x,p,labels/a.nii.gz,maps/a_probability.nii.gz"]
    (files / "pairs.csv").write_text("\n".join(lines) + "\n")
    assert run("suspect", "manifest=pairs.csv", "output=o", folder=files).code == 0
    assert {(row["case"], row["patient"]) for row in rows(files / "o" / "suspect.csv")} == {("x", "p")}
    assert [path.name for path in (files / "o" / "weights").iterdir()] == ["x_weight.nii.gz"]


def test_nothing_to_suspect_is_said(tmp_path):
    write(tmp_path, "a", np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.001, np.float32))
    ended = run(*WORDS, folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "there is nothing to suspect" in ended.out
    page = (tmp_path / "o" / "suspect.html").read_text("utf-8")
    assert "There is no suspect." in page
    assert "there is nothing to suspect" in page
    assert rows(tmp_path / "o" / "suspect.csv") == []


def test_masks_are_refused_and_nothing_is_written(files):
    ended = run("suspect", "reference=labels", "prediction=labels", "output=o", folder=files)
    assert_refused(ended, 3, "case 'a'", "is a mask", "save_probability=true")
    assert not (files / "o").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reference=labels"], "give reference=FOLDER and prediction=FOLDER"),
        (["reference=labels", "prediction=maps", "output=maps"], "output 'maps' is one of the folders"),
        (["rules.suspect_weight=2"], "rules: suspect_weight must be in [0, 1], got 2"),
        (["rules.weight_kinds=[mised]"], "rules: weight_kinds must be some of"),
        (["rules.min_scores=1"], "did you mean 'rules.min_score'?"),
        (["+rules.min_scores=1"], "did you mean 'min_score'?"),
        (["max_pictures=-1"], "max_pictures must be 0 or more, got -1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_refused(files, words, told):
    ended = run("suspect", "output=o", *words, folder=files)
    assert_refused(ended, 2, told)
    assert not (files / "o").exists()


def test_an_image_on_another_grid_is_refused(files):
    write_volume(files / "images" / "a.nii.gz", Volume(np.zeros((12, 10, 7), np.float32), AFFINE))
    ended = run(*WORDS, "images=images", folder=files)
    assert_refused(ended, 3, "case 'a'", "shape (12, 10, 7) and (12, 10, 8)")


def test_the_command_imports_neither_torch_nor_monai(files):
    program = textwrap.dedent(f"""
        import sys
        from medfocal import cli
        try:
            cli.main({[*WORDS, "images=images"]})
        except SystemExit as ended:
            print("ended with", ended.code, sorted({{"torch", "monai"}} & set(sys.modules)))
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=files, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout.splitlines()[-1:] == ["ended with 0 []"], ended.stderr


def test_weights_of_an_earlier_run_do_not_stay(files):
    assert run(*WORDS, folder=files).code == 0
    words = ["suspect", "reference=labels/a.nii.gz", "prediction=maps/a_probability.nii.gz", "output=o"]
    assert run(*words, folder=files).code == 0
    assert [path.name for path in (files / "o" / "weights").iterdir()] == ["a_weight.nii.gz"]
