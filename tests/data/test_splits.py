"""Folds of whole patients that are alike, and splits that are written, read and held against the dataset."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.data.splits import CaseCensus, census, make_folds, read_split, with_fold, write_split
from medfocal.errors import DatasetError, InputError
from medfocal.volume import Volume, write_volume

ONE = LabelScheme({0: "background", 1: "lesion"})


def manifest_of(*cases, folder="."):
    """A manifest of `(name, patient, split)`, annotated unless they are for test; no file exists."""
    made = [
        Case(name, patient, split, (f"{folder}/{name}.nii",), None if split == "test" else f"{folder}/{name}_l.nii")
        for name, patient, split in cases
    ]
    return Manifest(f"{folder}/d.json", "d", ("T1",), ONE, tuple(made))


def counted_like_ms(num_patients, free_share, seed, num_cases=1):
    """A manifest, and lesions of its cases as skewed as those of multiple sclerosis."""
    rng = np.random.default_rng(seed)
    cases, counted = [], {}
    for number in range(num_patients):
        is_free = rng.random() < free_share
        for visit in range(num_cases):
            name = f"c{number}_{visit}"
            cases.append((name, f"p{number}", "training"))
            num_lesions = 0 if is_free else 1 + int(rng.lognormal(2, 1.2))
            counted[name] = CaseCensus(num_lesions, float(rng.lognormal(0, 1, num_lesions).sum()))
    return manifest_of(*cases), counted


def of_folds(folds, counted):
    """Lesions and ml of each fold."""
    return np.array(
        [[sum(getattr(counted[n], key) for n in own) for own in folds] for key in ("num_lesions", "lesion_ml")]
    )


def spread(amounts):
    """Standard deviation over folds, as a share of the mean."""
    return amounts.std(axis=-1) / amounts.mean(axis=-1)


@settings(max_examples=60, deadline=None)
@given(
    lesions=st.lists(st.sampled_from([0, 0, 1, 2, 50]), min_size=2, max_size=40),
    num_folds=st.integers(2, 7),
    seed=st.integers(0, 5),
)
def test_every_fold_has_as_many_patients_with_and_without_lesions_to_within_one(lesions, num_folds, seed):
    manifest = manifest_of(*((f"c{n}", f"p{n}", "training") for n in range(len(lesions))))
    counted = {f"c{n}": CaseCensus(num, num / 10) for n, num in enumerate(lesions)}
    if len(lesions) < num_folds:
        with pytest.raises(DatasetError, match=f"has {len(lesions)} patients .* too few for {num_folds} folds"):
            make_folds(manifest, counted, num_folds=num_folds, seed=seed)
        return
    folds = make_folds(manifest, counted, num_folds=num_folds, seed=seed)
    assert sorted(name for own in folds for name in own) == sorted(counted)
    for chosen in (
        counted,
        {n for n, c in counted.items() if c.num_lesions},
        {n for n, c in counted.items() if not c.num_lesions},
    ):
        sizes = [len(set(own) & set(chosen)) for own in folds]
        assert max(sizes) - min(sizes) <= 1


def test_all_cases_of_a_patient_are_in_one_fold_and_test_cases_in_none():
    cases = [(f"c{n}", f"p{n % 7}", "validation" if n % 2 else "training") for n in range(30)]
    # A patient in two splits is no fault here: folds are made of both together.
    manifest = manifest_of(*cases, ("t", "q", "test"))
    counted = {name: CaseCensus(n % 5, n / 3) for n, (name, _, _) in enumerate(cases)}
    folds = make_folds(manifest, counted, num_folds=3, seed=0)
    homes = {name: number for number, own in enumerate(folds) for name in own}
    assert sorted(homes) == sorted(counted)
    for patient in range(7):
        assert len({homes[name] for name, of, _ in cases if of == f"p{patient}"}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_more_alike_in_lesions_and_volume_than_random_ones(seed):
    manifest, counted = counted_like_ms(60, 0.25, seed)
    ours = spread(of_folds(make_folds(manifest, counted, num_folds=5, seed=seed), counted))
    rng = np.random.default_rng(seed)
    random = []
    for _ in range(100):
        order = rng.permutation([case.name for case in manifest.cases])
        random.append(spread(of_folds(np.array_split(order, 5), counted)))
    assert (ours < np.quantile(random, 0.05, axis=0)).all()


def test_folds_of_many_patients_hardly_differ():
    manifest, counted = counted_like_ms(300, 0.25, 0)
    assert (spread(of_folds(make_folds(manifest, counted, num_folds=5, seed=0), counted)) < 0.02).all()


def test_patients_of_several_cases_are_counted_with_all_of_them():
    manifest, counted = counted_like_ms(25, 0.2, 1, num_cases=3)
    folds = make_folds(manifest, counted, num_folds=5, seed=0)
    assert [len(own) for own in folds] == [15] * 5
    assert (spread(of_folds(folds, counted)) < 0.35).all()


@pytest.mark.filterwarnings("error")
def test_folds_of_a_dataset_without_any_lesion_are_made_too():
    manifest = manifest_of(*((f"c{n}", f"p{n}", "training") for n in range(5)))
    folds = make_folds(manifest, {f"c{n}": CaseCensus(0, 0.0) for n in range(5)}, num_folds=2, seed=0)
    assert sorted(len(own) for own in folds) == [2, 3]


def test_folds_come_from_the_seed_and_not_from_the_order_of_the_cases():
    manifest, counted = counted_like_ms(20, 0.2, 0)
    folds = make_folds(manifest, counted, num_folds=4, seed=3)
    turned = Manifest(manifest.path, "d", ("T1",), ONE, manifest.cases[::-1])
    assert [set(own) for own in make_folds(turned, counted, num_folds=4, seed=3)] == [set(own) for own in folds]
    assert make_folds(manifest, counted, num_folds=4, seed=4) != folds


def test_one_fold_validates_the_others_train_and_test_cases_stay():
    cases = [(f"c{n}", f"p{n}", "validation" if n == 0 else "training") for n in range(8)]
    manifest = manifest_of(*cases, ("t", "q", "test"))
    counted = {name: CaseCensus(1, 1.0) for name, _, _ in cases}
    made = [with_fold(manifest, counted, num_folds=4, fold=fold, seed=0) for fold in range(4)]
    validating = Counter(case.name for split in made for case in split.split("validation"))
    assert validating == Counter(list(counted))
    for split in made:
        assert (len(split.split("training")), len(split.split("validation"))) == (6, 2)
        assert [case.name for case in split.split("test")] == ["t"]
        assert [case.name for case in split.cases] == [case.name for case in manifest.cases]
    assert made[2].split_from == "fold 2 of 4, seed 0"


@pytest.fixture
def dataset(tmp_path):
    """Three annotated cases with lesions of known number and volume, and one for test whose label is no file."""
    shape, affine = (12, 10, 8), np.diag([-0.5, 1.0, 3.0, 1.0])  # 1.5 mm3 a voxel
    boxes = {"a": [np.s_[1:3, 1:3, 1:3], np.s_[8, 8, 6]], "b": [], "r1": [np.s_[1:3, 1, 1]], "r2": [np.s_[2:4, 1, 1]]}
    for name, own in boxes.items():
        label = np.zeros(shape, np.uint8)
        for number, box in enumerate(own, start=1):
            label[box] = number
        write_volume(tmp_path / f"{name}.nii", Volume(label, affine))
    cases = (
        Case("a", "a", "training", (), tmp_path / "a.nii"),
        Case("b", "b", "validation", (), tmp_path / "b.nii"),
        Case("c", "c", "training", (), None, (tmp_path / "r1.nii", tmp_path / "r2.nii")),
        Case("t", "t", "test", (), tmp_path / "gone.nii"),
    )
    return Manifest(tmp_path / "d.json", "d", (), LabelScheme({0: "background", 1: "x", 2: "y"}), cases)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_census_counts_lesions_of_labels_and_of_what_half_of_the_readers_marked(dataset, workers):
    found = census(dataset, workers=workers)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == CaseCensus(2, pytest.approx((8 + 1) * 1.5e-3))
    assert found["b"] == CaseCensus(0, 0.0)
    assert found["c"] == CaseCensus(1, pytest.approx(3 * 1.5e-3))


def test_the_census_names_the_case_that_cannot_be_read(dataset):
    dataset.cases[1].label.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"case 'b': .*b\.nii"):
        census(dataset, workers=1)


CASES = [("a", "p", "training"), ("b", "q", "training"), ("c", "r", "validation"), ("t", "s", "test")]


def test_a_split_is_written_and_read_back_exactly(tmp_path):
    manifest = manifest_of(*CASES)
    split = with_fold(manifest, {n: CaseCensus(1, 1.0) for n in "abc"}, num_folds=3, fold=1, seed=7)
    write_split(tmp_path / "split.json", split)
    assert read_split(tmp_path / "split.json", manifest) == split
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["split_from"] == "fold 1 of 3, seed 7"
    assert content["test"] == [{"case": "t", "patient": "s"}]


def written(folder, content):
    path = folder / "given.json"
    path.write_text(json.dumps(content))
    return path


def ours(**splits):
    """A split.json of letters: `ours(training="ab")`; patients are those of `CASES`."""
    patients = {name: patient for name, patient, _ in CASES}
    return {
        split: [{"case": n, "patient": patients.get(n, n)} for n in splits.get(split, "")]
        for split in ("training", "validation", "test")
    }


def test_a_file_may_move_cases_to_other_splits(tmp_path):
    path = written(tmp_path, ours(training="c", validation="b", test="at"))
    split = read_split(path, manifest_of(*CASES))
    assert [case.split for case in split.cases] == ["test", "validation", "training", "test"]
    assert split.split_from == f"'{path}'"


def test_splits_of_nnunet_leave_test_cases_alone(tmp_path):
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}]
    path = written(tmp_path, folds)
    split = read_split(path, manifest_of(*CASES), fold=1)
    assert [case.split for case in split.cases] == ["training", "validation", "training", "test"]
    assert split.split_from == f"fold 1 of 2 in '{path}'"


@pytest.mark.parametrize(
    ("content", "fold", "message"),
    [
        (ours(training="a", validation="c", test="t"), None, "does not name b of the dataset"),
        (ours(training="ab", validation="c"), None, "does not name t of the dataset"),
        (ours(training="abx", validation="c", test="t"), None, "names x, unknown to the dataset"),
        (ours(training="aab", validation="c", test="t"), None, "names a more than once"),
        (ours(training="ab", validation="bc", test="t"), None, "names b more than once"),
        (ours(training="abt", validation="c"), None, "'label' and 'annotations' are missing of 1 case .*: t"),
        (ours(training="ab", validation="c", test="t"), 0, "has no folds, but data.fold is 0; leave it out"),
        ({"training": []}, None, "'validation' must be a list of objects with 'case' and 'patient'"),
        ({**ours(), "training": ["a"]}, None, "'training' must be a list of objects with 'case'"),
        ({**ours(), "test": [{"case": "a"}]}, None, "'test' must be a list of objects with 'case'"),
        ([{"train": ["a", "b"], "val": ["c"]}], None, "has 1 folds; choose one by data.fold, from 0, got None"),
        ([{"train": ["a", "b"], "val": ["c"]}], 1, "has 1 folds; choose one by data.fold, from 0, got 1"),
        ([{"train": ["a", "b"], "val": ["c"]}], -1, "has 1 folds; choose one by data.fold, from 0, got -1"),
        ([{"train": ["a", "b"]}], 0, "fold 0 must be an object with the lists 'train' and 'val'"),
        ([["a"]], 0, "fold 0 must be an object with the lists"),
        ([{"train": [1], "val": []}], 0, "fold 0 must be an object with the lists"),
        ([{"train": ["a"], "val": ["c"]}], 0, "does not name b of the dataset"),
        ([{"train": ["a", "b", "t"], "val": ["c"]}], 0, "names t, unknown to the dataset"),
        ([], 0, "has 0 folds"),
        ("x", None, "holds a str; an object or a list of folds is expected"),
    ],
)
def test_a_split_that_does_not_fit_the_dataset_is_refused(tmp_path, content, fold, message):
    with pytest.raises(InputError, match=message):
        read_split(written(tmp_path, content), manifest_of(*CASES), fold=fold)


def test_a_split_of_other_patients_is_refused(tmp_path):
    path = written(tmp_path, ours(training="ab", validation="c", test="t"))
    other = manifest_of(("a", "other", "training"), *CASES[1:])
    with pytest.raises(DatasetError, match="the patient of case 'a' is 'p', but 'other' in the dataset"):
        read_split(path, other)


def test_a_split_that_divides_a_patient_is_refused(tmp_path):
    cases = [("a", "p", "training"), ("b", "p", "training"), ("c", "r", "validation")]
    path = written(tmp_path, [{"train": ["a", "c"], "val": ["b"]}])
    with pytest.raises(DatasetError, match="1 patient is in more than one of 'training', 'validation': p"):
        read_split(path, manifest_of(*cases), fold=0)


def test_all_that_is_wrong_with_a_split_is_told_at_once(tmp_path):
    path = written(tmp_path, ours(training="axt", validation="a"))
    with pytest.raises(DatasetError, match=r"(?s)has 4 faults.*a more than once.*name b, c of.*names x, unknown.*: t;"):
        read_split(path, manifest_of(*CASES))


@pytest.mark.parametrize(
    ("data", "message"), [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (None, "does not exist")]
)
def test_what_is_no_split_file_is_an_input_error(tmp_path, data, message):
    if data is not None:
        (tmp_path / "s.json").write_bytes(data)
    with pytest.raises(InputError, match=f"the split file '.*' {message}"):
        read_split(tmp_path / "s.json", manifest_of(*CASES))
