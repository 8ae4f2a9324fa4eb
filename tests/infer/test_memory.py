"""What a prediction takes of memory: known before it starts, true, and bounded where asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import CPU, image, unet, window

from medfocal.errors import ResourceError
from medfocal.infer.memory import free_memory_gb, is_out_of_memory, outline_of, plan_memory
from medfocal.infer.voxels import predict_voxels

SHAPE = (1, 40, 60, 30)


def plan(num_channels, *, shape=SHAPE, size=(16, 16, 16), batch=1, num_results=5, max_memory_mb=None):
    net = unet(in_channels=shape[0])
    own = window(size, batch=batch)
    return plan_memory(net, shape, own, num_channels, num_results=num_results, max_memory_mb=max_memory_mb)


def test_sums_are_of_one_window_in_depth_and_of_the_whole_case_in_the_other_axes():
    more = plan(24).megabytes - plan(4).megabytes
    assert more == pytest.approx(4 * 20 * 16 * 60 * 30 / 1e6)


def test_image_and_results_are_of_the_whole_case():
    assert plan(1, num_results=9).megabytes - plan(1).megabytes == pytest.approx(4 * 40 * 60 * 30 / 1e6)
    taller, short = plan(0, shape=(1, 80, 60, 30)), plan(0)
    assert taller.megabytes - short.megabytes == pytest.approx((4 + 5) * 40 * 60 * 30 / 1e6)


def test_more_windows_at_once_take_more():
    assert plan(1, batch=8).megabytes > plan(1, batch=1).megabytes


def test_without_a_bound_a_case_is_worked_on_as_a_whole():
    assert plan(24).num_tiles == 1


def test_a_bound_makes_as_few_parts_as_fit_it():
    whole = plan(24).megabytes
    assert plan(24, max_memory_mb=whole).num_tiles == 1
    bounded = plan(24, max_memory_mb=whole - 0.01)
    assert bounded.num_tiles == 2
    assert bounded.megabytes <= whole - 0.01
    thirds = whole - 4 * 24 * 16 * 40 * 30 / 1e6  # of 60 columns 40 are not there
    assert plan(24, max_memory_mb=thirds).num_tiles == 3


def test_a_bound_that_is_too_small_is_refused_with_what_would_do():
    with pytest.raises(
        ResourceError, match=r"a case of 40x60x30 voxels takes \d+ MB at least, one window at a time, and .* is 0.1"
    ) as no:
        plan(24, max_memory_mb=0.1)
    least = int(str(no.value).split(" takes ")[1].split(" MB")[0])
    assert plan(24, max_memory_mb=least).megabytes <= least
    assert plan(24, batch=64, max_memory_mb=least).batch == 1


def test_the_outline_of_a_network_has_no_weights_and_leaves_the_network_alone():
    net = unet()
    outline = outline_of(net)
    assert {value.device.type for value in outline.state_dict().values()} == {"meta"}
    assert {value.device.type for value in net.state_dict().values()} == {"cpu"}
    with torch.inference_mode():
        assert outline(torch.empty(3, 1, 8, 8, 8, device="meta")).shape == (3, 2, 8, 8, 8)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("num_members", [1, 3])
def test_members_and_views_need_no_sums_of_their_own(num_members, mirror):
    """The bound that just does for one does for all."""
    networks = [unet(seed, out_channels=5) for seed in range(num_members)]
    case, own = image(20, 30, 16, channels=1), window((16, 16, 16), batch=1)
    needed = plan_memory(networks[0], case.shape, own, 4, num_results=5, max_memory_mb=None).megabytes
    found = predict_voxels(
        networks, case, window=own, activation="softmax", num_classes=4, device=CPU, mirror=mirror, max_memory_mb=needed
    )
    assert found.probability.shape == (20, 30, 16)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_pytorch_says_in_these_words_that_memory_cannot_be_had():
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**55)
    assert is_out_of_memory(told.value)


def test_some_memory_is_free():
    assert 0.01 < free_memory_gb(CPU) < 1e5


MEASURED = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from small_models import CPU, unet, window
from medfocal.infer.memory import plan_memory
from medfocal.infer.voxels import predict_voxels

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6

given = json.loads(sys.argv[2])
torch.set_num_threads(1)
bound, num_classes = given["bound"], given["classes"]
net = unet(out_channels=num_classes + 1, channels=given["channels"])
own = window([32, 32, 32], batch=given["batch"])
settings = {"activation": "softmax", "num_classes": num_classes, "device": CPU, "max_memory_mb": bound}
predict_voxels([net], torch.randn(1, 32, 32, 32), window=own, **settings)  # what a program holds once
image = torch.randn(1, *given["shape"])
planned = plan_memory(net, image.shape, own, num_classes if num_classes > 1 else 0, num_results=5, max_memory_mb=bound)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS") - image.nbytes / 1e6
predict_voxels([net], image, window=own, **settings)
print(json.dumps({"tiles": planned.num_tiles, "planned": planned.megabytes, "taken": status("VmHWM") - before}))
"""


def measured(**given):
    words = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), json.dumps(given)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")


@linux
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_what_is_planned_is_about_what_is_taken(batch):
    """Above it, and not by much."""
    found = measured(classes=1, shape=[128, 112, 96], batch=batch, channels=[8, 16, 16], bound=200)
    assert found["taken"] <= found["planned"] <= 3 * found["taken"]


@linux
def test_a_bound_on_memory_is_obeyed_with_many_classes():
    """Unbounded sums of 24 classes alone would take 63 MB, and averages of the whole case 189 MB."""
    found = measured(classes=24, shape=[96, 160, 128], batch=1, channels=[4, 8, 8], bound=95)
    assert found["tiles"] > 1
    assert found["taken"] <= 95


def test_fewer_windows_at_once_are_taken_before_a_case_is_refused():
    whole = plan(2, batch=8)
    assert (whole.batch, whole.num_tiles) == (8, 1)
    less = plan(2, batch=8, max_memory_mb=0.8 * whole.megabytes)
    assert less.batch < 8
    assert less.megabytes <= 0.8 * whole.megabytes
