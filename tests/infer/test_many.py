"""Predicting many cases: nothing is done twice, nothing stale is taken for done, a fault of one stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CPU, RULE, card, unet
from torch import nn

from medfocal.errors import ConfigError, GeometryError, InputError, ModelError, ResourceError
from medfocal.infer import many
from medfocal.infer.many import PredictSettings, predict
from medfocal.model import Model, OperatingPoint
from medfocal.volume import Volume, read_volume, write_volume

SHAPE, AFFINE = (12, 10, 8), np.diag([0.5, 1.0, 3.0, 1.0])
FULL = PredictSettings(save_probability=True, save_spread=True, mirror=True)
NUM_VIEWS = 8


class Watched(nn.Module):
    """Sure of a lesion where the image is above 2; counts what it is shown, and can be told to do more."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # a network has a device
        self.calls = 0
        self.meanwhile = lambda: None

    def forward(self, x):
        if x.device.type != "meta":
            self.calls += 1
            self.meanwhile()
        return torch.cat([torch.zeros_like(x), 8 * (x - 2)], dim=1)


def model(**changes):
    made = card(
        unet(), **{"window": {"size": [16, 16, 16], "overlap": 0.5, "batch": 1, "precision": "float32"}, **changes}
    )
    made = replace(made, preprocessing=replace(made.preprocessing, intensity="none"))
    return Model((Watched().eval(),), made, ("0" * 64,))


def stored(folder, *names, seed=0, shape=SHAPE, affine=AFFINE, height=9.0):
    """Images with one bright block each, at another place in each; a window holds a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        values = np.random.default_rng(seed + number).normal(0, 0.1, shape).astype(np.float32)
        values[2 + number : 5 + number, 3:6, : max(1, shape[2] // 2)] = height
        write_volume(folder / f"{name}.nii.gz", Volume(values, affine))
    return folder


@pytest.fixture
def images(tmp_path):
    return stored(tmp_path / "in", "a", "b", "c")


def again(made, images, output, settings=None):
    """Predict with the network of `made`; how many cases it was shown."""
    before = made.networks[0].calls
    predict(made, images, output, device=CPU, settings=settings)
    return made.networks[0].calls - before


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def record(output, name="run.json"):
    return json.loads((output / name).read_text("utf-8"))


def contents(folder, *kinds):
    return {path.name: path.read_bytes() for kind in kinds for path in folder.glob(f"*_{kind}*")}


# Nothing is done twice


def test_what_is_complete_is_not_computed_again_and_told_all_the_same(images, tmp_path):
    made = model()
    assert again(made, images, tmp_path / "out") == 3
    first, was = record(tmp_path / "out"), contents(tmp_path / "out", "mask", "candidates", "run")
    assert again(made, images, tmp_path / "out") == 0
    second = record(tmp_path / "out")
    assert contents(tmp_path / "out", "mask", "candidates", "run") == was
    assert [row.pop("resumed") for row in second["cases"]] == [True] * 3
    assert second == first
    assert not any("resumed" in row for row in first["cases"])


def test_an_order_not_to_resume_computes_everything(images, tmp_path):
    made = model()
    again(made, images, tmp_path / "out")
    assert again(made, images, tmp_path / "out", PredictSettings(resume=False)) == 3
    assert not any("resumed" in row for row in record(tmp_path / "out")["cases"])


def test_a_changed_image_is_computed_again_and_no_other(images, tmp_path):
    made = model()
    again(made, images, tmp_path / "out")
    stored(images, "b", seed=7)
    assert again(made, images, tmp_path / "out") == 1
    assert ["resumed" in row for row in record(tmp_path / "out")["cases"]] == [True, False, True]
    assert again(made, images, tmp_path / "out") == 0


def test_changed_voxels_beside_an_unchanged_header_are_computed_again(tmp_path):
    import nibabel

    for name, value in (("one", 9.0), ("other", 0.0)):
        values = np.zeros(SHAPE, np.float32)
        values[2:5, 3:6, 2:4] = value
        values[0, 0, 0] = 1
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Pair(values, AFFINE), tmp_path / name / "a.img")
    made = model()
    assert again(made, tmp_path / "one", tmp_path / "out") == 1
    header = (tmp_path / "one" / "a.hdr").read_bytes()
    assert again(made, tmp_path / "one", tmp_path / "out") == 0
    (tmp_path / "one" / "a.img").write_bytes((tmp_path / "other" / "a.img").read_bytes())
    assert (tmp_path / "one" / "a.hdr").read_bytes() == header
    assert again(made, tmp_path / "one", tmp_path / "out") == 1
    assert not read_volume(tmp_path / "out" / "a_mask.nii.gz").array.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda made: replace(made, weights_sha256=("1" * 64,)),
        lambda made: replace(made, card=replace(made.card, candidates={**RULE, "min_volume_ml": 0.01})),
        lambda made: replace(made, card=replace(made.card, correction={**made.card.correction, "temperature": 2.0})),
        lambda made: replace(
            made, card=replace(made.card, operating_points=(OperatingPoint(name="x", threshold=0.9, source="y"),))
        ),
    ],
)
def test_another_model_computes_everything_again(images, tmp_path, change):
    made = model()
    again(made, images, tmp_path / "out")
    other = change(made)
    assert again(other, images, tmp_path / "out") == 3
    assert again(other, images, tmp_path / "out") == 0


@pytest.mark.parametrize(
    "setting", [{"threshold": 0.9}, {"mirror": True}, {"save_probability": True}, {"save_spread": True, "mirror": True}]
)
def test_another_setting_that_changes_the_results_computes_again(images, tmp_path, setting):
    made = model()
    again(made, images, tmp_path / "out")
    assert again(made, images, tmp_path / "out", PredictSettings(**setting)) >= 3
    assert again(made, images, tmp_path / "out", PredictSettings(**setting)) == 0


@pytest.mark.parametrize("setting", [{"keep_going": False}, {"max_memory_mb": 100.0}, {"shard": (1, 1)}])
def test_a_setting_that_changes_no_result_computes_nothing(images, tmp_path, setting):
    made = model()
    again(made, images, tmp_path / "out")
    assert again(made, images, tmp_path / "out", PredictSettings(**setting)) == 0


@pytest.mark.parametrize(
    "name", ["b_mask.nii.gz", "b_candidates.csv", "b_run.json", "b_probability.nii.gz", "b_spread.nii.gz"]
)
def test_a_case_of_which_a_file_is_missing_is_computed_again(images, tmp_path, name):
    made = model()
    again(made, images, tmp_path / "out", FULL)
    was = contents(tmp_path / "out", "mask", "candidates", "probability", "spread")
    (tmp_path / "out" / name).unlink()
    assert again(made, images, tmp_path / "out", FULL) == NUM_VIEWS
    assert contents(tmp_path / "out", "mask", "candidates", "probability", "spread") == was


@pytest.mark.parametrize("kind", ["mask.nii.gz", "candidates.csv", "probability.nii.gz"])
def test_a_case_of_which_a_file_was_altered_is_computed_again(images, tmp_path, kind):
    made = model()
    again(made, images, tmp_path / "out", FULL)
    path = tmp_path / "out" / f"b_{kind}"
    was = path.read_bytes()
    path.write_bytes((tmp_path / "out" / f"c_{kind}").read_bytes() + b"\n")
    assert again(made, images, tmp_path / "out", FULL) == NUM_VIEWS
    assert path.read_bytes() == was


def test_maps_of_an_earlier_run_do_not_stay_beside_new_masks(images, tmp_path):
    again(model(), images, tmp_path / "out", FULL)
    again(replace(model(), weights_sha256=("1" * 64,)), images, tmp_path / "out")
    kinds = ("candidates.csv", "mask.nii.gz", "run.json")
    assert files(tmp_path / "out") == [*(f"{case}_{kind}" for case in "abc" for kind in kinds), "run.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "{",
        lambda _: "null",
        lambda _: "[]",
        lambda _: '"key"',
        lambda _: "[" * 100_000,
        lambda _: "\udcff",
        lambda values: json.dumps({"key": values["key"]}),
        lambda values: json.dumps({**values, "row": None}),
        lambda values: json.dumps({**values, "row": ["case"]}),
        lambda values: json.dumps({**values, "row": "case"}),
        lambda values: json.dumps({**values, "row": {}}),
        lambda values: json.dumps({**values, "row": {**values["row"], "case": "b"}}),
        lambda values: json.dumps({**values, "row": {**values["row"], "error": "it failed"}}),
        lambda values: json.dumps({**values, "key": "0" * 64}),
        lambda values: json.dumps({**values, "key": None}),
        lambda values: json.dumps({"row": values["row"]}),
    ],
)
def test_a_record_that_is_none_vouches_for_nothing(tmp_path, damage):
    images, made = stored(tmp_path / "in", "a"), model()
    again(made, images, tmp_path / "out")
    path = tmp_path / "out" / "a_run.json"
    whole = path.read_text("utf-8")
    path.write_text(damage(json.loads(whole)), encoding="utf-8", errors="surrogateescape")
    assert again(made, images, tmp_path / "out") == 1
    assert [row["case"] for row in record(tmp_path / "out")["cases"]] == ["a"]
    assert json.loads(path.read_text("utf-8"))["key"] == json.loads(whole)["key"]


def test_a_folder_in_the_place_of_a_record_is_a_resource_error(tmp_path):
    images = stored(tmp_path / "in", "a")
    (tmp_path / "out" / "a_run.json" / "deeper").mkdir(parents=True)
    with pytest.raises(ResourceError, match=r"cannot replace '.*a_run\.json'"):
        predict(model(), images, tmp_path / "out", device=CPU)


def test_a_case_has_no_record_while_its_files_are_replaced(images, tmp_path):
    """Else the record of an earlier model would vouch for what a later one left when it was stopped."""
    made = model()
    again(made, images / "a.nii.gz", tmp_path / "out")
    stored(images, "a", seed=9)
    (tmp_path / "out" / "a_mask.nii.gz").unlink()
    made.networks[0].meanwhile = lambda: (tmp_path / "out" / "a_mask.nii.gz").mkdir(exist_ok=True)
    with pytest.raises(ResourceError):
        predict(made, images / "a.nii.gz", tmp_path / "out", device=CPU)
    assert not (tmp_path / "out" / "a_run.json").exists()


# A run that is stopped


def test_an_interrupted_run_goes_on_where_it_was(images, tmp_path):
    made = model()

    def stop():
        if made.networks[0].calls == 2:
            raise KeyboardInterrupt

    made.networks[0].meanwhile = stop
    with pytest.raises(KeyboardInterrupt):
        predict(made, images, tmp_path / "out", device=CPU)
    assert files(tmp_path / "out") == ["a_candidates.csv", "a_mask.nii.gz", "a_run.json"]
    made.networks[0].meanwhile = lambda: None
    assert again(made, images, tmp_path / "out") == 2
    again(made, images, tmp_path / "whole")
    assert contents(tmp_path / "out", "mask", "candidates") == contents(tmp_path / "whole", "mask", "candidates")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_many import CPU, model, predict
made = model()
made.networks[0].meanwhile = lambda: time.sleep(0.3)
predict(made, Path(sys.argv[2]), Path(sys.argv[3]), device=CPU)
"""


def test_a_killed_run_leaves_no_half_file_and_goes_on(images, tmp_path):
    output = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(images), str(output)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not (output / "a_run.json").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert (output / "a_run.json").exists(), process.stderr.read().decode()[-2000:]
    assert not (output / "run.json").exists()
    done = len(list(output.glob("*_run.json")))
    assert 1 <= done < 3
    half = output / ".b_mask.nii.gz.0123abcd.part"  # as a kill within a writing leaves it
    half.write_bytes(b"half")
    assert again(model(), images, output) == 3 - done
    assert done == 2 or not half.exists()
    again(model(), images, tmp_path / "whole")
    assert contents(output, "mask", "candidates") == contents(tmp_path / "whole", "mask", "candidates")


# Shares


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_disjoint_and_together_all(images, tmp_path, count):
    shares = []
    for number in range(1, count + 1):
        masks = predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(shard=(number, count)))
        name = "run.json" if count == 1 else f"run_{number}of{count}.json"
        cases = [row["case"] for row in record(tmp_path / "out", name)["cases"]]
        assert [mask.name for mask in masks] == [f"{case}_mask.nii.gz" for case in cases]
        shares.append(cases)
    assert sorted(case for share in shares for case in share) == ["a", "b", "c"]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    again(model(), images, tmp_path / "whole")
    kinds = ("mask", "candidates")
    assert contents(tmp_path / "out", *kinds) == contents(tmp_path / "whole", *kinds)


def test_shares_leave_each_others_records_alone(images, tmp_path):
    for number in (1, 2):
        predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(shard=(number, 2)))
    assert {"run_1of2.json", "run_2of2.json"} <= set(files(tmp_path / "out"))
    assert "run.json" not in files(tmp_path / "out")
    assert again(model(), images, tmp_path / "out") == 0  # what shares did is done


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (-1, 2), (1, 0)])
def test_a_share_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=f"shard must be i/n with i from 1 to n, got {shard[0]}/{shard[1]}"):
        PredictSettings(shard=shard)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"threshold": float("nan")}, r"threshold must be in \[0, 1\], got nan"),
        ({"max_memory_mb": 0.0}, "max_memory_mb must be above 0, got 0.0"),
        ({"max_memory_mb": float("nan")}, "max_memory_mb must be above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        PredictSettings(**values)


# A fault of one


def test_the_others_are_predicted_when_one_cannot_be_and_the_fault_is_told(images, tmp_path):
    (images / "b.nii.gz").write_bytes(b"\x1f\x8bnothing")
    made = model()
    with pytest.raises(InputError) as told:
        predict(made, images, tmp_path / "out", device=CPU)
    assert "1 of 3 cases could not be predicted:\n  - case 'b': the file" in str(told.value)
    assert "the same command leaves them out" in str(told.value)
    rows = record(tmp_path / "out")["cases"]
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert "b.nii.gz" in rows[1]["error"]
    assert not any("error" in row for row in (rows[0], rows[2]))
    assert not list((tmp_path / "out").glob("b_*"))
    stored(images, "b", seed=1)
    assert again(made, images, tmp_path / "out") == 1


def test_many_faults_are_counted_and_ten_are_listed(tmp_path):
    names = [f"case{number:02d}" for number in range(12)]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(b"")
    with pytest.raises(InputError) as told:
        predict(model(), tmp_path / "in", tmp_path / "out", device=CPU)
    message = str(told.value)
    assert "12 of 12 cases could not be predicted" in message
    assert "The others are in" not in message
    assert message.count("\n  - ") == 10
    assert "and 2 more" in message


def test_a_run_that_shall_not_go_on_stops_at_the_first_fault(images, tmp_path):
    (images / "b.nii.gz").write_bytes(b"")
    made = model()
    with pytest.raises(InputError, match="case 'b': "):
        predict(made, images, tmp_path / "out", device=CPU, settings=PredictSettings(keep_going=False))
    assert files(tmp_path / "out") == ["a_candidates.csv", "a_mask.nii.gz", "a_run.json"]
    assert made.networks[0].calls == 1


def test_a_fault_of_the_model_stops_everything(images, tmp_path):
    made = model()
    nan = nn.Conv3d(1, 2, 1)
    nn.init.constant_(nan.bias, float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        predict(replace(made, networks=(nan.eval(),)), images, tmp_path / "out", device=CPU)
    assert files(tmp_path / "out") == []


def test_a_disk_that_refuses_leaves_no_half_file(images, tmp_path):
    (tmp_path / "out" / "b_mask.nii.gz").mkdir(parents=True)
    (tmp_path / "out" / "b_mask.nii.gz" / "mine").write_text("mine")
    with pytest.raises(ResourceError, match="b_mask"):
        predict(model(), images, tmp_path / "out", device=CPU)
    assert not [name for name in files(tmp_path / "out") if "part" in name]
    assert "run.json" not in files(tmp_path / "out")
    assert "a_mask.nii.gz" in files(tmp_path / "out")


def test_an_image_that_vanishes_meanwhile_is_a_fault_of_its_case(images, tmp_path):
    made = model()
    made.networks[0].meanwhile = lambda: (images / "c.nii.gz").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"c\.nii\.gz"):  # it is read only once the second is at work
        predict(made, images, tmp_path / "out", device=CPU)
    assert [("error" in row) for row in record(tmp_path / "out")["cases"]] == [False, False, True]


# Where results may go


@pytest.mark.parametrize("place", [".", "masks", "masks/deeper"])
def test_an_output_within_the_input_is_refused_before_anything_is_made(images, place):
    was = files(images)
    with pytest.raises(InputError, match=r"lies in the input .* or be taken for the next time"):
        predict(model(), images, images / place, device=CPU)
    assert files(images) == was


def test_an_output_that_leads_into_the_input_is_refused(images, tmp_path):
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(InputError, match="lies in the input"):
        predict(model(), images, tmp_path / "link" / "out", device=CPU)


def test_an_input_within_the_output_is_fine(images, tmp_path):
    assert again(model(), images, tmp_path) == 3


# What overlaps


def reads_at_each_case(monkeypatch, images, output, settings=None):
    """The cases that had been read whenever the network was at work, with time for one more."""
    read, seen, made = [], [], model()
    own = many.read_case

    def read_case(case, scheme):
        found = own(case, scheme)
        read.append(case.name)
        return found

    monkeypatch.setattr(many, "read_case", read_case)

    def look():
        until = time.monotonic() + (5 if settings is None else 0.3)
        while len(read) < min(made.networks[0].calls + 1, 3) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.1)
        seen.append("".join(read))

    made.networks[0].meanwhile = look
    predict(made, images, output, device=CPU, settings=settings)
    return seen


def test_one_case_is_read_ahead_in_order(monkeypatch, images, tmp_path):
    assert reads_at_each_case(monkeypatch, images, tmp_path / "out") == ["ab", "abc", "abc"]


def test_nothing_is_read_ahead_where_memory_is_bounded(monkeypatch, images, tmp_path):
    settings = PredictSettings(max_memory_mb=100)
    assert reads_at_each_case(monkeypatch, images, tmp_path / "out", settings) == ["a", "ab", "abc"]


@pytest.mark.parametrize("form", ["image", "dataset", "labels"])
def test_an_output_among_files_of_the_input_is_refused_and_nothing_is_replaced(tmp_path, form):
    """An annotation may have the name of a mask."""
    folder = tmp_path / "own"
    folder.mkdir()
    values = np.zeros((16, 16, 16), np.float32)
    write_volume(folder / "a.nii.gz", Volume(values, np.eye(4)))
    labels = folder if form != "labels" else tmp_path / "labels"
    labels.mkdir(exist_ok=True)
    write_volume(labels / "a_mask.nii.gz", Volume(values.astype(np.uint8), np.eye(4)))
    before = (labels / "a_mask.nii.gz").read_bytes()
    entry = {"image": str(folder / "a.nii.gz"), "label": str(labels / "a_mask.nii.gz"), "case": "a"}
    content = {"channel_names": {"0": "MR"}, "labels": {"0": "background", "1": "lesion"}}
    write_volume(folder / "b.nii.gz", Volume(values, np.eye(4)))
    content |= {"training": [entry], "test": [{"case": "b", "image": str(folder / "b.nii.gz")}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    given = folder / "a.nii.gz" if form == "image" else tmp_path / "dataset.json"
    with pytest.raises(InputError, match="Choose a folder of its own"):
        predict(model(), given, labels, device=CPU)
    assert (labels / "a_mask.nii.gz").read_bytes() == before


def test_a_bound_on_memory_that_is_too_small_says_what_it_takes(images, tmp_path):
    with pytest.raises(ResourceError, match=r"takes \d+ MB at least, one window at a time, and max_memory_mb is 0.01"):
        predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(max_memory_mb=0.01))


# Where no lesion can be


def masked(folder, name, values, affine=AFFINE):
    folder.mkdir(exist_ok=True)
    write_volume(folder / f"{name}.nii.gz", Volume(values.astype(np.uint8), affine))


def test_candidates_in_an_exclusion_mask_are_none(images, tmp_path):
    made, folder = model(), tmp_path / "exclude"
    empty, full = np.zeros(SHAPE), np.ones(SHAPE)
    for name, values in (("a", empty), ("b", full), ("c", empty)):
        masked(folder, name, values)
    settings = PredictSettings(exclude=folder)
    assert again(made, images, tmp_path / "out", settings) == 3
    assert [row["num_candidates"] for row in record(tmp_path / "out")["cases"]] == [1, 0, 1]
    assert not read_volume(tmp_path / "out" / "b_mask.nii.gz").array.any()
    assert again(made, images, tmp_path / "out", settings) == 0
    masked(folder, "b", empty)
    assert again(made, images, tmp_path / "out", settings) == 1
    assert [row["num_candidates"] for row in record(tmp_path / "out")["cases"]] == [1, 1, 1]


def test_a_folder_of_exclusion_masks_that_is_not_there_is_told_once(images, tmp_path):
    with pytest.raises(InputError, match=r"exclude: '.*nowhere' is not a folder") as told:
        predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(exclude=tmp_path / "nowhere"))
    assert "cases" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_exclusion_mask_and_one_on_another_grid_are_faults_of_their_cases(images, tmp_path):
    folder = tmp_path / "exclude"
    masked(folder, "a", np.zeros(SHAPE))
    masked(folder, "b", np.zeros(SHAPE), np.diag([0.5, 1.0, 2.0, 1.0]))
    with pytest.raises(InputError) as told:
        predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(exclude=folder))
    assert "2 of 3 cases" in str(told.value)
    assert "case 'b': image and exclusion mask" in str(told.value)
    assert "case 'c': no exclusion mask" in str(told.value)
    strict = PredictSettings(exclude=folder, keep_going=False)
    with pytest.raises(GeometryError, match=r"case 'b': image and exclusion mask .* differ: spacing"):
        predict(model(), images, tmp_path / "out", device=CPU, settings=strict)
    masked(folder, "b", np.zeros(SHAPE))
    (folder / "b.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        predict(model(), images, tmp_path / "out", device=CPU, settings=strict)


# Awkward volumes


@pytest.mark.parametrize("shape", [(12, 10, 1), (1, 10, 8), (12, 1, 8), (7, 9, 3), (40, 9, 5)])
def test_one_slice_and_volumes_smaller_than_the_window_are_predicted(tmp_path, shape):
    values = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    place = tuple(slice(n // 2, n // 2 + 2) for n in shape)
    values[place] = 9
    (tmp_path / "in").mkdir()
    write_volume(tmp_path / "in" / "a.nii.gz", Volume(values, AFFINE))
    (mask,) = predict(model(), tmp_path / "in", tmp_path / "out", device=CPU, settings=FULL)
    found = read_volume(mask)
    assert found.array.shape == shape
    np.testing.assert_array_equal(found.array > 0, values > 2)
    for kind in ("probability", "spread"):
        assert read_volume(tmp_path / "out" / f"a_{kind}.nii.gz").array.shape == shape


def test_the_spread_of_members_is_written_for_voxels_and_candidates(images, tmp_path):
    made = model()

    class Unsure(nn.Module):
        def forward(self, x):
            return torch.cat([torch.zeros_like(x), 0.5 * (x - 2)], dim=1)

    two = replace(
        made,
        networks=(made.networks[0], Unsure().eval()),
        card=replace(made.card, members=made.card.members * 2),
        weights_sha256=("0" * 64, "1" * 64),
    )
    predict(two, images / "a.nii.gz", tmp_path / "out", device=CPU, settings=FULL)
    image = read_volume(images / "a.nii.gz").array.astype(np.float64)
    each = [1 / (1 + np.exp(-factor * (image - 2))) for factor in (8, 0.5)]
    spread = read_volume(tmp_path / "out" / "a_spread.nii.gz").array
    np.testing.assert_allclose(spread, np.std(each, axis=0), atol=1e-5)
    table = (tmp_path / "out" / "a_candidates.csv").read_text().splitlines()
    column = table[0].split(",").index("spread")
    assert float(table[1].split(",")[column]) == pytest.approx(spread[image == image.max()].max(), abs=1e-6)


def test_without_the_map_the_column_of_spread_is_empty(images, tmp_path):
    predict(model(), images / "a.nii.gz", tmp_path / "out", device=CPU)
    table = (tmp_path / "out" / "a_candidates.csv").read_text().splitlines()
    assert table[0].endswith(",spread")
    assert table[1].endswith(",")


def test_a_spread_of_one_member_and_one_view_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match=r"one member, with tta=none\. Give several models, or tta=mirror"):
        predict(model(), images, tmp_path / "out", device=CPU, settings=PredictSettings(save_spread=True))


@pytest.mark.parametrize(("mirrored", "mirror"), [(False, True), (True, False)])
def test_an_operating_point_of_other_views_is_noted(images, tmp_path, caplog, mirrored, mirror):
    made = model()
    point = OperatingPoint(name="known", threshold=0.5, source="made", mirrored=mirrored)
    made = replace(made, card=replace(made.card, operating_points=(point,)))
    for output, settings, told in (
        ("other", PredictSettings(mirror=mirror), True),
        ("same", PredictSettings(mirror=mirrored), False),
        ("given", PredictSettings(mirror=mirror, threshold=0.5), False),
    ):
        caplog.clear()
        predict(made, images, tmp_path / output, device=CPU, settings=settings)
        notes = [row["notes"] for row in record(tmp_path / output)["cases"]]
        assert all(("the operating point 'known' was chosen with" in "".join(note)) is told for note in notes)
        assert ("the operating point 'known' was chosen with" in caplog.text) is told


def test_an_empty_share_is_a_record_of_no_case(tmp_path):
    stored(tmp_path / "in", "a")
    settings = PredictSettings(shard=(2, 2))
    assert predict(model(), tmp_path / "in", tmp_path / "out", device=CPU, settings=settings) == []
    assert record(tmp_path / "out", "run_2of2.json")["cases"] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_may_not_be_written_is_a_resource_error(images, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="may not be written"):
        predict(model(), images, tmp_path / "out", device=CPU)
