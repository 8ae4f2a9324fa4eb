"""Training cases with targets: what is read, made alike, estimated, refused, and kept in the cache."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import SVLS, NoSmoothing
from medfocal.annotations.target import AnnotationSettings
from medfocal.data import targets
from medfocal.data.cache import Cache
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.stored import Precision, training_case
from medfocal.data.targets import (
    Recipe,
    log_annotations,
    prepare_evaluation,
    prepare_training,
    read_case_with_reference,
    taught,
    teach,
)
from medfocal.data.transforms import PreparedCase, Preprocessing
from medfocal.errors import DatasetError, InputError, ResourceError
from medfocal.losses import focal_loss
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
LABELS = LabelScheme({0: "background", 1: "lesion"})
NONE = NoSmoothing()


def marks(*starts):
    label = np.zeros(SHAPE, np.uint8)
    for i in starts:
        label[i : i + 2, 4:7, 3:5] = 1
    return label


def prepared(name, label, *readers, weight=None):
    image = torch.ones(1, *SHAPE)
    image[:, 0] = 0
    grid = Volume(np.zeros(SHAPE), AFFINE)
    found = None if label is None else torch.from_numpy(label)
    annotations = np.stack(readers) if readers else None
    case = Case(name, name, "training", ())
    return PreparedCase(case, image, AFFINE, found, grid, label, annotations, weight)


def together(cases, settings, smoothing):
    """What the cases teach together, without files."""
    return taught([training_case(case, teach(case, settings, smoothing, 2)) for case in cases], settings, smoothing, 2)


TWO = prepared("two", marks(2), marks(2), marks(2, 8))
FOUR = prepared("four", marks(5), *[marks(5)] * 3, marks(1))
BARE = prepared("bare", marks(7))


def test_without_wishes_the_label_stays_the_target():
    found = together([TWO, BARE], AnnotationSettings(), NONE)
    assert all(case.target.alternatives[0] is case.target.lesions for case in found.cases)
    assert np.array_equal(found.cases[0].target.lesions, marks(2))
    assert not found.is_soft
    assert not found.is_weighted
    assert found.record["cases"] == []


def test_cases_with_one_two_and_four_readers_are_taught_together():
    found = together([TWO, FOUR, BARE], AnnotationSettings(fusion="random"), NONE)
    assert [len(case.target.alternatives) for case in found.cases] == [2, 4, 1]
    assert [case["num_readers"] for case in found.record["cases"]] == [2, 4, 0]
    assert np.array_equal(found.cases[0].target.lesions, marks(2, 8))  # patches look where anybody marked
    assert [case.readers.num_readers for case in found.cases] == [2, 4, 0]


def test_shares_of_one_case_make_all_shares_and_weights_of_one_make_all_weighted():
    weighted = prepared("weighted", marks(7), weight=np.full(SHAPE, 0.5, np.float32))
    found = together([TWO, weighted], AnnotationSettings(fusion="mean"), NONE)
    assert found.is_soft
    assert found.is_weighted
    assert np.array_equal(found.membership(LABELS), [[0], [1]])
    assert [case.target.is_soft for case in found.cases] == [True, False]
    assert [case["mean_weight"] for case in found.record["cases"]] == [1, 0.5]
    assert [case["mean_weight_of_lesions"] for case in found.record["cases"]] == [1, 0.5]


def test_smoothing_alone_makes_shares_of_the_label():
    found = together([BARE], AnnotationSettings(), SVLS(sigma=1.0))
    assert found.is_soft
    assert "num_readers" not in found.record["cases"][0]


def test_smoothing_estimated_from_the_readers_suits_the_loss():
    settings = AnnotationSettings(fusion="random", estimate_smoothing=True)
    found = together([TWO, FOUR, BARE], settings, NONE)
    assert np.allclose(np.sum(found.smoothing, axis=1), 1)
    assert found.smoothing[1][0] > found.smoothing[0][1] > 0
    loss = focal_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long), label_smoothing=found.smoothing)
    assert math.isfinite(loss)
    assert found.record["label_smoothing"] == found.smoothing


def test_what_was_found_is_logged(caplog):
    settings = AnnotationSettings(fusion="random", estimate_smoothing=True)
    found = together([TWO, FOUR, BARE], settings, NONE)
    with caplog.at_level(logging.INFO, logger="medfocal"):
        log_annotations(found.record)
    text = caplog.text
    assert "1 with 0, 1 with 2, 1 with 4; fusion random" in text
    assert "agree with a Dice of" in text
    assert "case 'bare': it has no annotations" in text
    assert "label smoothing by the readers' rates: where the label is 0" in text


def test_how_much_weight_is_left_is_logged_and_recorded(caplog):
    found = together([TWO, FOUR], AnnotationSettings(fusion="majority", disagreement="ignore"), NONE)
    mean = np.mean([case["mean_weight"] for case in found.record["cases"]])
    assert 0.9 < mean < 1
    assert found.record["cases"][0]["mean_weight_of_lesions"] == 1
    with caplog.at_level(logging.INFO, logger="medfocal"):
        log_annotations(found.record)
    assert f"voxels weigh {mean:.3f} on average" in caplog.text


def listed(folder, name="c1", *, label=True, num_readers=0):
    """A case of which only the names of its files are looked at."""
    readers = tuple(folder / f"r{number}.nii.gz" for number in range(num_readers))
    return Case(name, name, "training", (folder / "i.nii.gz",), folder / "l.nii.gz" if label else None, readers)


def recipe(smoothing=NONE, *, scheme=LABELS, precision=Precision.AUTO, preprocessing=None, **settings):
    return Recipe(
        scheme=scheme,
        preprocessing=preprocessing or Preprocessing(),
        precision=precision,
        annotations=AnnotationSettings(**settings),
        smoothing=smoothing,
    )


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        (
            {},
            {"fusion": "majority"},
            "no training case has 'annotations'.*annotations=majority.*annotations=reference",
        ),
        ({}, {"disagreement": "ignore"}, "no training case has 'annotations'"),
        (
            {"num_readers": 1},
            {"fusion": "union", "disagreement": "weight"},
            "disagreement=weight needs cases with two readers",
        ),
        (
            {"num_readers": 1},
            {"fusion": "union", "estimate_smoothing": True},
            "estimate_smoothing needs cases with two readers",
        ),
        (
            {"label": False, "num_readers": 1},
            {},
            "1 training cases have annotations and no 'label', such as 'c1'",
        ),
    ],
)
def test_settings_that_no_case_can_follow_are_refused_before_a_file_is_read(tmp_path, case, settings, message):
    with pytest.raises(DatasetError, match=message):
        prepare_training([listed(tmp_path, **case)], recipe(**settings), Cache(tmp_path / "cache"))


def test_error_rates_of_readers_who_gave_shares_are_refused():
    soft = prepared("soft", marks(2), *[marks(2) * np.float32(0.3)] * 2)
    with pytest.raises(DatasetError, match="estimate_smoothing is of readers who gave classes, and some gave shares"):
        together([soft], AnnotationSettings(fusion="random", estimate_smoothing=True), NONE)


def test_voxels_that_nobody_judged_weigh_nothing():
    ignore = np.zeros(SHAPE, bool)
    ignore[6:9, 2:5, 1:3] = True
    weight = np.full(SHAPE, 0.5, np.float32)
    plain = dataclasses.replace(prepared("one", marks(2)), ignore=ignore)
    given = dataclasses.replace(prepared("two", marks(2), weight=weight), ignore=ignore)
    assert np.array_equal(teach(plain, AnnotationSettings(), NONE, 2).weight, np.where(ignore, 0, 1))
    assert np.array_equal(teach(given, AnnotationSettings(), NONE, 2).weight, np.where(ignore, 0, 0.5))
    found = together([plain, BARE], AnnotationSettings(), NONE)
    assert found.is_weighted
    assert found.record["cases"][0]["mean_weight"] == pytest.approx(1 - ignore.mean())


def test_regions_are_taught_by_the_classes_that_they_consist_of():
    scheme = LabelScheme(
        {0: "background", 1: "edema", 2: "core", 3: "enhancing"},
        regions={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
    )
    found = together([TWO], AnnotationSettings(), NONE)
    assert found.membership(LABELS) is None
    assert np.array_equal(found.membership(scheme), [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert found.membership(scheme).dtype == np.float32


def on_disk(folder, *, name="c1", label=True, shape=SHAPE, seed=0, readers=2):
    """A case of two channels in files; two lesions, of which the first reader marked one."""

    def stored(kind, array):
        write_volume(folder / f"{name}-{kind}.nii.gz", Volume(array, AFFINE))
        return folder / f"{name}-{kind}.nii.gz"

    def drawn(*starts):
        array = np.zeros(shape, np.uint8)
        for i in starts:
            array[i : i + 2, 4:7, 3:5] = 1
        return array

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    images = tuple(stored(f"i{n}", rng.normal(100, 10, shape).astype(np.float32)) for n in range(2))
    annotations = (stored("r1", drawn(2)), stored("r2", drawn(2, 8)))[:readers]
    return Case(name, name, "training", images, stored("l", drawn(2)) if label else None, annotations)


def test_readers_and_weights_come_onto_the_grid_of_the_network(tmp_path):
    case = on_disk(tmp_path)
    write_volume(tmp_path / "c1_weight.nii.gz", Volume((1 - 0.5 * marks(2)).astype(np.float32), AFFINE))
    known = recipe(
        fusion="mean",
        weights=str(tmp_path),
        preprocessing=Preprocessing(orientation="LPS", spacing_mm=(0.5, 1.0, 1.5)),
    )
    (found,) = prepare_training([case], known, Cache(tmp_path / "cache")).cases
    (plain,) = prepare_training(
        [case], dataclasses.replace(known, annotations=AnnotationSettings()), Cache(tmp_path / "cache")
    ).cases
    turned, shares = plain.target.lesions, found.target.alternatives[0]
    assert shares.shape[1:] == found.image.shape[1:] == found.target.weight.shape == turned.shape
    # Axes are turned: what lay at the start lies at the end, both readers in the same place as the label.
    assert turned[-4:-2].any()
    assert np.array_equal(shares[0] == 1, turned > 0)
    assert (shares[0] == 0.5).sum() == turned.sum()
    # Between voxels weights are interpolated; the label is the nearest voxel's.
    weight = found.target.weight
    assert (weight < 0.75)[turned > 0].mean() > 0.5
    assert weight.min() == pytest.approx(0.5)


def test_a_folder_without_weights_of_these_cases_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no weight map of any of the 1 training cases.*c1_weight\.nii\.gz"):
        prepare_training([on_disk(tmp_path)], recipe(weights=str(tmp_path)), Cache(tmp_path / "cache"))


@pytest.mark.parametrize(("fusion", "expected"), [("majority", marks(2)), ("union", marks(2, 8))])
def test_a_case_without_label_has_its_fused_readers_as_reference(tmp_path, fusion, expected):
    bare, full = on_disk(tmp_path / "a", label=False), on_disk(tmp_path / "b")
    assert np.array_equal(read_case_with_reference(bare, LABELS, Fusion(fusion)).label, expected)
    assert np.array_equal(read_case_with_reference(full, LABELS, Fusion(fusion)).label, marks(2))
    found = prepare_evaluation([bare, full], recipe(fusion=fusion), Cache(tmp_path / "cache"))
    assert np.array_equal(found[0].reference, expected)
    assert np.array_equal(found[1].reference, marks(2))
    assert found[0].grid.same_grid(Volume(marks(2), AFFINE))


def entries(folder):
    """When each file of the cache's entries was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.glob("*/*")
        if not path.parent.name.startswith(".")
    }


def contents(folder):
    return {name: (folder / name).read_bytes() for name in entries(folder)}


def test_what_is_there_is_used_and_only_what_is_missing_is_made(tmp_path):
    cases = [on_disk(tmp_path / "data", name=f"c{n}", seed=n) for n in range(3)]
    folder = tmp_path / "cache"
    prepare_training(cases[:2], recipe(), Cache(folder))
    before = entries(folder)
    assert len({name.split("/")[0] for name in before}) == 4
    prepare_training(cases, recipe(), Cache(folder))
    after = entries(folder)
    assert before.items() <= after.items()
    assert len({name.split("/")[0] for name in after}) == 6
    prepare_evaluation(cases, recipe(), Cache(folder))  # the images are those of the training
    assert len(list(folder.glob("image-*"))) == 3
    assert len(list(folder.glob("reference-*"))) == 3


def test_a_changed_file_is_another_entry_and_the_old_one_stays(tmp_path):
    case, folder = on_disk(tmp_path / "data"), tmp_path / "cache"
    prepare_training([case], recipe(), Cache(folder))
    before = entries(folder)
    write_volume(case.label, Volume(marks(5), AFFINE))
    (found,) = prepare_training([case], recipe(), Cache(folder)).cases
    assert np.array_equal(found.target.lesions, np.flip(marks(5), ())[:])
    assert before.items() <= entries(folder).items()
    assert len(list(folder.glob("target-*"))) == 2
    assert len(list(folder.glob("image-*"))) == 1


def test_broken_entries_are_made_anew(tmp_path):
    case, folder = on_disk(tmp_path / "data"), tmp_path / "cache"
    prepare_training([case], recipe(), Cache(folder))
    sound = contents(folder)
    for name in sound:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        prepare_training([case], recipe(), Cache(folder))
        assert contents(folder) == sound


def test_two_cases_of_the_same_files_share_their_entries_and_keep_their_names(tmp_path):
    case = on_disk(tmp_path / "data")
    twin = dataclasses.replace(case, name="twin", patient="twin")
    found = prepare_training([case, twin], recipe(fusion="majority"), Cache(tmp_path / "cache"))
    assert [item.case.name for item in found.cases] == ["c1", "twin"]
    assert [row["case"] for row in found.record["cases"]] == ["c1", "twin"]
    assert len(list((tmp_path / "cache").glob("image-*"))) == 1


def test_entries_are_the_same_bytes_by_one_process_and_by_several(tmp_path):
    cases = [on_disk(tmp_path / "data", name=f"c{n}", seed=n) for n in range(4)]
    prepare_training(cases, recipe(SVLS(), fusion="random"), Cache(tmp_path / "one"), workers=1)
    prepare_training(cases[::-1], recipe(SVLS(), fusion="random"), Cache(tmp_path / "two"), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Weighed(Cache):
    """A cache that remembers how much it was told to be needed."""

    def check_room(self, needed_bytes):
        self.needed = needed_bytes
        super().check_room(needed_bytes)


NESTED = LabelScheme({0: "background", 1: "lesion", 2: "other"})


@pytest.mark.parametrize(
    "known",
    [
        recipe(),
        recipe(precision=Precision.FLOAT32),
        recipe(preprocessing=Preprocessing(spacing_mm=(2.5, 0.9, 0.7), orientation="SAR")),
        recipe(SVLS()),
        recipe(SVLS(), scheme=NESTED),
        recipe(fusion="majority"),
        recipe(fusion="majority", disagreement="weight"),
        recipe(fusion="majority", disagreement="ignore"),
        recipe(fusion="random"),
        recipe(SVLS(), fusion="random"),
        recipe(fusion="mean"),
        recipe(fusion="staple"),
        recipe(SVLS(), fusion="mean", scheme=NESTED),
        recipe(weights="weights"),
    ],
    ids=lambda known: f"{known.annotations.fusion} {known.annotations.disagreement} {type(known.smoothing).__name__}",
)
@pytest.mark.parametrize("readers", [2, 1])
def test_what_is_needed_is_estimated_within_5_percent(tmp_path, monkeypatch, known, readers):
    if known.annotations.disagreement != "keep":
        readers = 2  # one alone cannot disagree
    monkeypatch.chdir(tmp_path)
    shape = (60, 50, 40)
    case = on_disk(tmp_path / "data", shape=shape, readers=readers)
    (tmp_path / "weights").mkdir()
    weights = np.random.default_rng(0).random(shape).astype(np.float32)
    write_volume(tmp_path / "weights" / "c1_weight.nii.gz", Volume(weights, AFFINE))
    for prepare, folder in ((prepare_training, tmp_path / "cache"), (prepare_evaluation, tmp_path / "other")):
        cache = Weighed(folder)
        prepare([case], known, cache)
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert cache.needed == pytest.approx(written, rel=0.05)
        prepare([case], known, cache)
        assert cache.needed == 0


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    """3 cases of 960 voxels with 2 channels in half precision and a label: 14.4 kB."""
    cases = [on_disk(tmp_path / "data", name=f"c{n}", seed=n) for n in range(3)]
    with pytest.raises(
        ResourceError, match=r"1\.44e-05 GB more are needed .* cache\.max_gb is 1e-05\. Raise it to 1\.45e-05"
    ):
        prepare_training(cases, recipe(), Cache(tmp_path / "cache", max_gb=1e-5))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("prepare", [prepare_training, prepare_evaluation])
@pytest.mark.parametrize("kind", ["i0", "i1", "l"])
def test_a_file_that_is_gone_is_refused_with_the_name_of_its_case(tmp_path, prepare, kind):
    case = on_disk(tmp_path / "data")
    (tmp_path / "data" / f"c1-{kind}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"case 'c1': the file '.*c1-{kind}.nii.gz' cannot be read: No such file"):
        prepare([case], recipe(), Cache(tmp_path / "cache"))


def test_a_file_that_is_damaged_is_refused_with_the_name_of_its_case_and_leaves_nothing(tmp_path):
    cases = [on_disk(tmp_path / "data", name=f"c{n}", seed=n) for n in range(2)]
    cases[1].label.write_bytes(cases[1].label.read_bytes()[:-9])
    with pytest.raises(InputError, match="case 'c1'"):
        prepare_training(cases, recipe(), Cache(tmp_path / "cache"))
    assert {name.split("-")[0] for name in entries(tmp_path / "cache")} == {"image", "target"}
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.endswith(".part")]


def test_an_entry_that_goes_between_making_and_opening_is_a_readable_error(tmp_path, monkeypatch):
    make = targets._make_missing

    def and_delete(jobs, known, cache, *rest):
        make(jobs, known, cache, *rest)
        shutil.rmtree(cache.folder)

    monkeypatch.setattr(targets, "_make_missing", and_delete)
    with pytest.raises(ResourceError, match="was there a moment ago"):
        prepare_training([on_disk(tmp_path / "data")], recipe(), Cache(tmp_path / "cache"))


def _prepare_marked(cases, cache, marks_folder, seconds):
    """Prepare, slowly, and leave a mark for each reading of a case."""
    read = targets.read_case

    def marked(case, *rest, **more):
        (marks_folder / f"{case.name}-{os.getpid()}").touch()
        time.sleep(seconds)
        return read(case, *rest, **more)

    targets.read_case = marked
    found = prepare_training(cases, recipe(), Cache(cache), workers=1)
    assert [case.case.name for case in found.cases] == [case.name for case in cases]


@pytest.fixture
def at_once(tmp_path):
    """Six cases, a cache, and a folder of marks."""
    cases = [on_disk(tmp_path / "data", name=f"c{n}", seed=n) for n in range(6)]
    (tmp_path / "marks").mkdir()
    return cases, tmp_path / "cache", tmp_path / "marks"


SPAWN = multiprocessing.get_context("spawn")


def test_two_trainings_at_once_read_each_case_once_and_both_get_all(at_once):
    processes = [SPAWN.Process(target=_prepare_marked, args=(*at_once, 0.3)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name.split("-")[0] for path in at_once[2].iterdir()) == [f"c{n}" for n in range(6)]


def test_a_killed_preparation_goes_on_where_it_was(at_once):
    cases, cache, marks_folder = at_once
    process = SPAWN.Process(target=_prepare_marked, args=(*at_once, 0.5))
    process.start()
    for _ in range(6000):
        if sum(1 for _ in marks_folder.iterdir()) >= 3:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = entries(cache)
    assert {name.split("-")[0] for name in before} == {"image", "target"}
    assert len({name.split("/")[0] for name in before}) == 4  # two cases were done, the third was being read
    _continue = SPAWN.Process(target=_prepare_marked, args=(*at_once, 0))
    _continue.start()
    _continue.join()
    assert _continue.exitcode == 0
    assert before.items() <= entries(cache).items()
    read_by = [path.name.split("-")[0] for path in marks_folder.iterdir()]
    assert {name: read_by.count(name) for name in sorted(set(read_by))} == {
        "c0": 1, "c1": 1, "c2": 2, "c3": 1, "c4": 1, "c5": 1,
    }  # fmt: skip
    prepare_training(cases, recipe(), Cache(cache.parent / "unbroken"))
    assert contents(cache) == contents(cache.parent / "unbroken")
    assert not [path for path in cache.iterdir() if path.name.endswith(".part")]


def test_a_case_is_taught_the_same_from_the_cache_as_in_memory(tmp_path):
    for known, workers in itertools.product((recipe(), recipe(SVLS(), fusion="random")), (1, None)):
        case = on_disk(tmp_path / "data")
        (found,) = prepare_training([case], known, Cache(tmp_path / "cache"), workers=workers).cases
        volumes = targets.read_case(case, LABELS, with_readers=known.annotations.uses_readers)
        alone = targets.prepare_case(volumes, known.preprocessing)
        target = teach(alone, known.annotations, known.smoothing, 2)
        expected = training_case(alone, target, Precision.FLOAT16)
        assert np.array_equal(found.image, expected.image)
        assert np.array_equal(found.table.voxels, expected.table.voxels)
        assert len(found.target.alternatives) == len(target.alternatives)
        assert all(np.array_equal(a, b) for a, b in zip(found.target.alternatives, target.alternatives, strict=True))
        assert found.target.record == target.record


@pytest.mark.parametrize("prepare", [prepare_training, prepare_evaluation])
def test_a_file_that_changes_between_its_digest_and_its_reading_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, prepare
):
    """Else what it holds now would be kept under the digest of what it held before, for good."""
    case = on_disk(tmp_path)
    read = targets.read_case

    def read_late(*arguments, **keywords):
        write_volume(case.label, Volume(marks(7), AFFINE))
        os.utime(case.label, ns=(1, 1))
        return read(*arguments, **keywords)

    monkeypatch.setattr(targets, "read_case", read_late)
    with pytest.raises(InputError, match="case 'c1': a file was changed while it was read"):
        prepare([case], recipe(), Cache(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*/entry.json"))
