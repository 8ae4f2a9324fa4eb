"""The fused loss as a citizen of autograd: repeated and scaled backward passes, layouts, empty batches, autocast,
compilers that work and fail, data-parallel training.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from torch._inductor import cpp_builder, exc
from torch.nn import functional as F

from medfocal.losses import DiceFocalLoss, FocalLoss, focal_loss, fused
from medfocal.losses.target import check_target

IGNORED = 255
SPATIAL = (5, 4, 3)


def random_case(num_channels, *, num_classes=None, spatial=SPATIAL, cases=2, dtype=torch.float32, seed=2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, num_channels, *spatial, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(num_classes or num_channels, (cases, *spatial), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@pytest.fixture(params=["at once", "in the backward pass"])
def moment(request, monkeypatch):
    """Both moments at which devices have the gradient computed."""
    monkeypatch.setattr(fused, "_takes_gradient_at_once", lambda _: request.param == "at once")


LOSSES = {
    "mean": focal_loss,
    "sum": lambda z, y: focal_loss(z, y, gamma=1.0, reduction="sum"),
    "none": lambda z, y: focal_loss(z, y, gamma=0.5, reduction="none"),
    "factor": lambda z, y: focal_loss(z, y, label_smoothing=0.1, normalize="factor"),
    "dice": DiceFocalLoss(focal_weight=3.0, cap=("zero", 0.1)),
    "pooled dice": DiceFocalLoss(batch_dice=True, normalize="factor"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradient_computed_in_the_backward_pass_is_that_computed_with_the_loss(monkeypatch, name, dtype):
    logits, labels = random_case(3, dtype=dtype)
    with_loss = value_and_gradient(lambda z: 3.0 * LOSSES[name](z, labels), logits)
    monkeypatch.setattr(fused, "_takes_gradient_at_once", lambda _: False)
    in_backward = value_and_gradient(lambda z: 3.0 * LOSSES[name](z, labels), logits)
    assert torch.equal(in_backward[0], with_loss[0])
    assert in_backward[1].dtype == dtype
    # The factor from above comes before or after rounding, and before or after the sum with Dice's gradient.
    steps = 4 * torch.finfo(dtype).eps
    largest = float(with_loss[1].abs().max())
    torch.testing.assert_close(in_backward[1], with_loss[1], rtol=steps, atol=steps * largest)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_second_backward_equals_the_first(name, factor):
    logits, labels = random_case(3)
    loss = factor * LOSSES[name](logits, labels).sum()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_second_backward_does_not_see_what_was_done_to_the_first_gradient(name):
    logits, labels = random_case(3)
    inner = logits * 1.0
    inner.retain_grad()
    loss = LOSSES[name](logits, labels).sum() + LOSSES[name](inner, labels).sum()
    loss.backward(retain_graph=True)
    first, of_inner = logits.grad.clone(), inner.grad.clone()
    for tensor in (logits, inner):
        tensor.grad.mul_(7.0).add_(1.0)
        tensor.grad = None
    loss.backward()
    torch.testing.assert_close(logits.grad, first, rtol=0, atol=0)
    torch.testing.assert_close(inner.grad, of_inner, rtol=0, atol=0)


def test_gradient_of_autograd_grad_changed_in_place_is_never_silently_given_again():
    logits, labels = random_case(3)
    loss = focal_loss(logits, labels)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    expected = first.clone()
    first.mul_(7.0)
    try:
        (second,) = torch.autograd.grad(loss, logits)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017 - either outcome is honest
    else:
        assert torch.equal(second, expected)


@pytest.mark.usefixtures("moment")
def test_logits_of_two_losses_get_the_sum_of_the_gradients():
    logits, labels = random_case(3)
    parts = [value_and_gradient(lambda z, name=name: LOSSES[name](z, labels), logits)[1] for name in ("mean", "dice")]
    _, both = value_and_gradient(lambda z: LOSSES["mean"](z, labels) + LOSSES["dice"](z, labels), logits)
    torch.testing.assert_close(both, parts[0] + parts[1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_gradient_is_multiplied_by_what_arrives_from_above(name):
    logits, labels = random_case(3, dtype=torch.float64)
    _, once = value_and_gradient(lambda z: LOSSES[name](z, labels), logits)
    for factor in (3.0, -0.5, 0.0):
        _, scaled = value_and_gradient(lambda z, factor=factor: factor * LOSSES[name](z, labels), logits)
        torch.testing.assert_close(scaled, factor * once)


@pytest.mark.usefixtures("moment")
def test_each_voxel_gets_its_own_factor_from_above():
    logits, labels = random_case(3, dtype=torch.float64)
    factors = torch.arange(labels.numel(), dtype=torch.float64).reshape(labels.shape)
    labels[0, 1] = IGNORED
    options = {"ignore_index": IGNORED, "label_smoothing": 0.1}
    _, by_product = value_and_gradient(lambda z: factors * focal_loss(z, labels, reduction="none", **options), logits)
    _, by_weight = value_and_gradient(
        lambda z: focal_loss(z, labels, weight=factors, reduction="sum", **options), logits
    )
    torch.testing.assert_close(by_product, by_weight)


@pytest.mark.usefixtures("moment")
def test_fp16_gradients_survive_the_scale_of_the_loss_that_mixed_precision_uses():
    """A mean over 2 million voxels has gradients below the least fp16; scaled by 2^16 they are not."""
    logits, labels = random_case(2, dtype=torch.float16)
    weight = torch.full(labels.shape, labels.numel() / 2.0e6)
    _, scaled = value_and_gradient(lambda z: 2.0**16 * focal_loss(z, labels, gamma=0.0, weight=weight), logits)
    _, exact = value_and_gradient(
        lambda z: 2.0**16 * focal_loss(z, labels, gamma=0.0, weight=weight), logits.detach().float()
    )
    torch.testing.assert_close(scaled.float(), exact, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_second_derivative_is_refused(name):
    logits, labels = random_case(3)
    with pytest.raises(RuntimeError, match=r"no second derivative.*without create_graph=True"):
        torch.autograd.grad(LOSSES[name](logits, labels).sum(), logits, create_graph=True)


def test_gradients_of_two_half_batches_accumulate_to_that_of_the_batch():
    logits, labels = random_case(3, cases=4)
    focal_loss(logits, labels, reduction="sum").backward()
    whole, logits.grad = logits.grad, None
    for half in (slice(0, 2), slice(2, 4)):
        focal_loss(logits[half], labels[half], reduction="sum").backward()
    torch.testing.assert_close(logits.grad, whole)


@pytest.mark.parametrize("name", LOSSES)
def test_value_without_gradient_is_the_same_and_has_no_graph(name):
    logits, labels = random_case(3)
    expected = LOSSES[name](logits, labels)
    of_detached = LOSSES[name](logits.detach(), labels)
    with torch.no_grad():
        of_no_grad = LOSSES[name](logits, labels)
    with torch.inference_mode():
        of_inference = LOSSES[name](logits, labels)
    for value in (of_detached, of_no_grad, of_inference):
        assert not value.requires_grad
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_autocast_leaves_the_loss_in_fp32(name):
    _, labels = random_case(3)
    features = torch.randn(2, 4, *SPATIAL, generator=torch.Generator().manual_seed(0))
    head = torch.nn.Conv3d(4, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
        assert logits.dtype == torch.bfloat16
        inside = LOSSES[name](logits, labels)
        inside.sum().backward()  # within, as some loops do
    of_head = head.weight.grad.clone()
    assert inside.dtype == torch.float32
    _, of_logits = value_and_gradient(lambda z: LOSSES[name](z, labels), logits.detach())
    torch.testing.assert_close(inside, LOSSES[name](logits.float(), labels), rtol=1e-6, atol=1e-7)
    head.weight.grad = None
    logits = head(features.bfloat16().float())
    (of_head_32,) = torch.autograd.grad(logits, head.weight, of_logits.float())
    torch.testing.assert_close(of_head, of_head_32, rtol=2e-2, atol=2e-2 * float(of_head_32.abs().max()))


@pytest.mark.parametrize("normalize", ["voxels", "positives", "weight", "factor"])
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 3), ("sigmoid", 2)])
@pytest.mark.usefixtures("moment")
def test_all_ignored_batch_has_loss_0_with_zero_gradients_however_normalised(activation, num_channels, normalize):
    logits, labels = random_case(num_channels)
    labels = torch.full_like(labels, IGNORED)
    for loss_class in (FocalLoss, DiceFocalLoss):
        loss = loss_class(
            activation=activation, ignore_index=IGNORED, normalize=normalize, label_smoothing=0.1, cap=("zero", 0.1)
        )
        value, gradient = value_and_gradient(lambda z, loss=loss: loss(z, labels), logits)
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(logits))
        assert loss.take_num_dropped() == 0


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 3, 0, 4), (2, 3, 5, 0), (0, 3)])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_empty_batch_has_loss_0_and_an_empty_gradient(name, shape):
    logits = torch.zeros(shape, requires_grad=True)
    labels = torch.zeros((shape[0], *shape[2:]), dtype=torch.uint8)
    value, gradient = value_and_gradient(lambda z: LOSSES[name](z, labels), logits)
    assert value.shape == (labels.shape if name == "none" else ())
    assert value.sum() == 0
    assert gradient.shape == shape


def layouts(logits):
    """The same values in other memory layouts."""
    yield "channels last", logits.to(memory_format=torch.channels_last_3d)
    yield "axes permuted", logits.permute(4, 0, 3, 1, 2).contiguous().permute(1, 3, 4, 2, 0)
    yield "every second voxel", logits.repeat_interleave(2, dim=3)[:, :, :, ::2]
    yield "channels apart", logits.repeat_interleave(3, dim=1)[:, ::3]
    yield "broadcast cases", logits[:1].expand(2, -1, -1, -1, -1)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_layout_of_the_logits_changes_neither_value_nor_gradient(name):
    logits, labels = random_case(3, dtype=torch.float64)
    for layout, same in layouts(logits.detach()):
        assert not same.is_contiguous(), layout
        expected = value_and_gradient(lambda z: LOSSES[name](z, labels), same.contiguous())
        leaf = same.detach().requires_grad_()
        value = LOSSES[name](leaf, labels)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        torch.testing.assert_close((value.detach(), gradient), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("moment")
def test_eager_gradient_of_channels_last_logits_is_channels_last(name):
    logits, labels = random_case(3)
    leaf = logits.detach().to(memory_format=torch.channels_last_3d).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](leaf, labels).sum(), leaf)
    assert gradient.stride() == leaf.stride()


def test_labels_and_weights_may_be_in_any_layout():
    logits, labels = random_case(3)
    weight = torch.rand(labels.shape)
    expected = value_and_gradient(lambda z: focal_loss(z, labels, weight=weight), logits)
    strided = labels.repeat_interleave(2, dim=2)[:, :, ::2]
    of_weight = weight.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    assert not strided.is_contiguous()
    assert not of_weight.is_contiguous()
    got = value_and_gradient(lambda z: focal_loss(z, strided, weight=of_weight), logits)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("moment")
def test_no_more_than_the_size_of_the_logits_is_saved_for_the_backward_pass(name, dtype):
    logits, labels = random_case(3, dtype=dtype)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (saved.append(tensor), tensor)[1], lambda t: t):
        LOSSES[name](logits, labels)
    of_labels = {labels.data_ptr()}  # they exist already
    of_voxels = [tensor for tensor in saved if tensor.numel() >= labels.numel() and tensor.data_ptr() not in of_labels]
    assert sum(tensor.nbytes for tensor in of_voxels) <= logits.nbytes


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize(
    "loss", [FocalLoss(ignore_index=IGNORED), DiceFocalLoss(ignore_index=IGNORED)], ids=["focal", "dice"]
)
def test_loss_that_is_kept_for_the_log_keeps_no_voxels_after_the_backward_pass(loss):
    """With ignore_index the labels that count are a tensor of the loss's own."""
    logits, labels = random_case(3)
    own = []

    def watched(*arguments, **options):
        checked = check_target(*arguments, **options)
        own.append(weakref.ref(checked.values))
        return checked

    with pytest.MonkeyPatch.context() as patch:
        for module in ("focal", "compound"):
            patch.setattr(f"medfocal.losses.{module}.check_target", watched)
        kept = loss(logits, labels)
    kept.backward()
    assert kept.grad_fn is not None
    (of_labels,) = own
    assert of_labels() is None


@pytest.mark.usefixtures("moment")
def test_arguments_are_not_changed():
    logits, labels = random_case(3)
    labels[0, 1] = IGNORED
    weight = torch.rand(labels.shape)
    before = logits.detach().clone(), labels.clone(), weight.clone()
    DiceFocalLoss(ignore_index=IGNORED, label_smoothing=0.1)(logits, labels, weight).backward()
    assert all(torch.equal(a, b) for a, b in zip((logits, labels, weight), before, strict=True))


@pytest.mark.usefixtures("moment")
def test_weights_of_0_give_loss_0_with_zero_gradients():
    logits, labels = random_case(3)
    value, gradient = value_and_gradient(
        lambda z: focal_loss(z, labels, weight=torch.zeros(labels.shape), normalize="weight"), logits
    )
    assert value == 0
    assert (gradient == 0).all()


# Compiled. Where no C++ compiler is at hand the same numbers must come from the fallback.


def confident_logits(num_channels, num_classes):
    """Margins up to 40 and beyond, where fp32 must keep the digits of fp64."""
    logits, labels = random_case(num_channels, num_classes=num_classes, spatial=(8, 7, 5))
    logits = logits.detach() * 5
    logits[0, 0, 0], logits[1, 0, 1] = 1e4, -1e4
    return logits, labels


def assert_compiled_is_exact(loss_of, num_channels, *, num_classes=None):
    logits, labels = confident_logits(num_channels, num_classes or num_channels)
    labels[0, 2] = IGNORED
    exact = value_and_gradient(lambda z: 3.0 * loss_of("eager")(z, labels), logits.double())
    compiled = value_and_gradient(lambda z: 3.0 * loss_of("compiled")(z, labels), logits)
    assert compiled[0].dtype == compiled[1].dtype == torch.float32
    torch.testing.assert_close(compiled[0].double(), exact[0], rtol=2e-6, atol=0)
    # 1e-5 is the target of the design; the least fp32 divided by the number of voxels has fewer digits.
    torch.testing.assert_close(compiled[1].double(), exact[1], rtol=1e-5, atol=1e-33)


WEIGHT = torch.rand(2, 8, 7, 5, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("num_channels", "num_classes", "options"),
    [
        (2, 2, {"gamma": 2.0}),
        (4, 4, {"gamma": (0.5, 2.0, 1.0, 3.0)}),
        (1, 2, {"gamma": 0.5, "activation": "sigmoid", "alpha": 0.3, "normalize": "factor"}),
        (2, 3, {"gamma": (2.0, 1.0, 0.0), "activation": "sigmoid"}),
    ],
    ids=["softmax 2", "softmax 4", "sigmoid 1", "sigmoid 2"],
)
def test_compiled_loss_of_labels_has_the_digits_of_double_precision(num_channels, num_classes, options):
    assert_compiled_is_exact(
        lambda backend: FocalLoss(backend=backend, ignore_index=IGNORED, **options),
        num_channels,
        num_classes=num_classes,
    )


def assert_compiled_is_eager(loss_of, num_channels, *, shares=False):
    logits, labels = random_case(num_channels, spatial=(8, 7, 5))
    labels[1, 3] = IGNORED
    target = torch.rand(logits.shape).softmax(dim=1) if shares else labels
    eager = value_and_gradient(lambda z: -0.5 * loss_of("eager")(z, target), logits)
    compiled = value_and_gradient(lambda z: -0.5 * loss_of("compiled")(z, target), logits)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)


def test_compiled_loss_of_each_voxel_with_smoothing_is_the_eager_one():
    def loss_of(backend):
        return lambda z, y: focal_loss(
            z,
            y,
            gamma=1.5,
            label_smoothing=0.1,
            ignore_index=IGNORED,
            weight=WEIGHT,
            cap=("linear", 0.2),
            reduction="none",
            backend=backend,
        )

    assert_compiled_is_eager(loss_of, 3)


def test_compiled_loss_of_probabilities_with_the_gradient_in_the_backward_pass_is_the_eager_one(monkeypatch):
    monkeypatch.setattr(fused, "_takes_gradient_at_once", lambda _: False)
    assert_compiled_is_eager(lambda backend: FocalLoss(backend=backend, alpha=(0.3, 0.9)), 2, shares=True)


def test_compiled_dice_focal_with_a_cap_is_the_eager_one_and_drops_the_same_voxels():
    losses = {
        backend: DiceFocalLoss(backend=backend, ignore_index=IGNORED, cap=("zero", 0.2), normalize="factor")
        for backend in ("eager", "compiled")
    }
    assert_compiled_is_eager(lambda backend: lambda z, y: losses[backend](z, y, WEIGHT), 3)
    assert losses["compiled"].take_num_dropped() == losses["eager"].take_num_dropped() > 0


def test_compiled_loss_takes_batches_of_other_sizes():
    for spatial, cases in (((8, 7, 5), 2), ((6, 7, 9), 3), ((6, 7, 9), 0)):
        logits, labels = random_case(2, spatial=spatial, cases=cases)
        eager, compiled = (
            value_and_gradient(
                lambda z, labels=labels, backend=backend: focal_loss(z, labels, ignore_index=IGNORED, backend=backend),
                logits,
            )
            for backend in ("eager", "compiled")
        )
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)


def test_compiled_loss_is_compiled_wherever_there_is_a_compiler():
    focal_loss(*random_case(2, spatial=(8, 7, 5)), ignore_index=IGNORED, backend="compiled")
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        assert "cpu" in fused._without_compiler
    else:
        assert "cpu" not in fused._without_compiler


def test_few_logits_are_not_compiled_unless_asked(monkeypatch):
    asked = []

    def compiled(*key):
        asked.append(key)
        return lambda *_: (torch.zeros(()), torch.zeros(2, 2, 60), torch.zeros(()))

    monkeypatch.setattr(fused, "_compile", compiled)
    logits, labels = random_case(2)
    focal_loss(logits, labels)
    focal_loss(logits, labels, backend="eager")
    assert not asked
    monkeypatch.setattr(fused, "_LEAST_LOGITS_TO_COMPILE", logits.numel())
    focal_loss(logits, labels, backend="eager")
    assert not asked
    monkeypatch.setattr(fused, "_without_compiler", set())
    focal_loss(logits, labels)
    assert asked


def run_python(program, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_compiler_that_fails_is_told_once_and_the_loss_is_right(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    out, err = run_python(
        """
        import torch
        from medfocal.losses import DiceFocalLoss, focal_loss
        logits, labels = torch.zeros(2, 2, 6, 5, requires_grad=True), torch.ones(2, 6, 5, dtype=torch.uint8)
        for gamma in (2.0, 2.0, 1.0):
            loss = focal_loss(logits, labels, gamma=gamma, backend="compiled")
            loss.backward()
            print(loss.item())
        DiceFocalLoss(backend="compiled")(logits, labels).backward()
        """,
        CXX=str(compiler),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )
    log_2 = 0.6931471805599453
    assert [float(line) for line in out.split()] == pytest.approx([log_2 / 4, log_2 / 4, log_2 / 2])
    assert err.count("the loss could not be compiled for cpu and runs eagerly: ") == 1


@pytest.mark.parametrize("name", ["mean", "dice"])
def test_model_and_loss_compiled_together_have_the_eager_numbers(name):
    torch.compiler.reset()
    logits, labels = random_case(2)
    expected = value_and_gradient(lambda z: 3.0 * LOSSES[name](z * 2, labels), logits)
    compiled = torch.compile(lambda z, y: 3.0 * LOSSES[name](z * 2, y), backend="aot_eager")
    got = value_and_gradient(lambda z: compiled(z, labels), logits)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("name", ["mean", "none"])
def test_focal_loss_fits_into_one_graph_of_a_compiler(name):
    torch.compiler.reset()
    logits, labels = random_case(2)
    expected = value_and_gradient(lambda z: 3.0 * LOSSES[name](z * 2, labels), logits)
    compiled = torch.compile(lambda z, y: 3.0 * LOSSES[name](z * 2, y), backend="aot_eager", fullgraph=True)
    got = value_and_gradient(lambda z: compiled(z, labels), logits)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


TWO_PROCESSES = """
    import json, sys
    import torch
    from torch import distributed, multiprocessing
    from medfocal.losses import DiceFocalLoss, FocalLoss

    def train(rank, folder):
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        torch.manual_seed(3)
        head = torch.nn.Conv3d(2, 3, 1)
        images, labels = torch.randn(4, 2, 5, 4, 3), torch.randint(3, (4, 5, 4, 3))
        model = torch.nn.parallel.DistributedDataParallel(head)
        part = slice(2 * rank, 2 * rank + 2)
        for number, loss in enumerate((FocalLoss(gamma=2.0), DiceFocalLoss(gamma=1.0))):
            model.zero_grad()
            loss(model(images[part]), labels[part]).backward()
            averaged = head.weight.grad.flatten().tolist()
            head.zero_grad()
            loss(head(images), labels).backward()
            alone = head.weight.grad.flatten().tolist()
            with open(f"{folder}/{number}-{rank}.json", "w") as file:
                json.dump([averaged, alone], file)
        distributed.destroy_process_group()

    workers = [multiprocessing.get_context("fork").Process(target=train, args=(r, sys.argv[1])) for r in range(2)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    sys.exit(max(abs(worker.exitcode) for worker in workers))
"""


def test_two_processes_average_to_the_gradient_of_one_with_the_whole_batch(tmp_path):
    run_python(TWO_PROCESSES, tmp_path)
    for number in range(2):
        for rank in range(2):
            averaged, alone = json.loads((tmp_path / f"{number}-{rank}.json").read_text())
            assert averaged == pytest.approx(alone, rel=1e-4, abs=1e-6)
            assert max(map(abs, alone)) > 1e-3


def test_cross_entropy_and_focal_loss_of_gamma_0_train_a_head_alike():
    torch.manual_seed(1)
    features, labels = torch.randn(2, 3, *SPATIAL), torch.randint(3, (2, *SPATIAL))
    weights = []
    for loss in (F.cross_entropy, FocalLoss(gamma=0.0)):
        torch.manual_seed(2)
        head = torch.nn.Conv3d(3, 3, 1)
        optimiser = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9)
        for _ in range(10):
            optimiser.zero_grad()
            loss(head(features), labels).backward()
            optimiser.step()
        weights.append(head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
