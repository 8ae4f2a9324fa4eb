"""Weights to start from: of a model of medfocal, of an nnU-Net checkpoint or of a MONAI bundle.

Whatever the file, nothing in it is run: safetensors hold tensors only, and torch's files are read with
`weights_only=True`. nnU-Net's checkpoints also hold numpy scalars; of these the names are known here and stand for
nothing, so that not even numpy's unpickling is called.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfocal.errors import ModelError
from medfocal.model import CARD, load_model

#: Where checkpoints keep the weights: nnU-Net, MONAI and Lightning, medfocal, and what many scripts write.
_NESTED = ("network_weights", "state_dict", "network", "model", "model_state_dict", "net")
#: What wrappers put before names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "_model.")
#: Second names of tensors that nnU-Net's and MONAI's state dicts list twice.
_TWICE = re.compile(r"^decoder\.encoder\.|\.all_modules\.|^skip_layers\.")
#: Numpy's names in a checkpoint of nnU-Net, which belong to its curves and its best score.
_NUMPY = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
)
_CONVERT = "Take the bundle's models/model.pt, or save the state dict of the loaded module with torch.save."


class _Nothing:
    """Stands for a numpy object whose value nobody asks for."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


@dataclass(frozen=True)
class _Source:
    """What a file holds.

    Attributes:
        path: Of the file, or of the model folder.
        tensors: As the file names them, without what wrappers put before the names.
        sha256: Of the file.
        axes: In a file of nnU-Net, which of its axes is I, J and K.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str
    axes: tuple[int, ...] = (2, 1, 0)


def load_initial_weights(network: nn.Module, path: Path) -> dict[str, Any]:
    """Copy weights into a network where names and shapes agree; the others stay as they are.

    Names are those of medfocal, of nnU-Net's PlainConvUNet and ResidualEncoderUNet, or of MONAI's DynUNet, whichever
    give most. Kernels of nnU-Net, whose images have the axes (K, J, I) or those of its plans, are turned to (I, J, K).
    Where all of its weights find their place, which takes `upsample_bias`, the logits are its logits (strides of 1 and
    2). A decoder's kernel that is smaller than ours is set into the middle of one with zeros, which computes the same.

    Args:
        network: One of `medfocal.networks`, on any device, not sharded.
        path: A model folder of medfocal, a folder of a MONAI bundle, a `.safetensors`, or a state dict or checkpoint
            of torch such as nnU-Net's `checkpoint_final.pth`.

    Returns:
        Plain values. `source`, `sha256` of the weights' file and `names` ("medfocal", "nnU-Net" or "MONAI DynUNet");
        `matched` of the network's `of` tensors, with `parameters_matched` of `parameters_of` values; `left_random`,
        names of the tensors that were not given; `other_shape`, why not, with both shapes; `not_used`, names of the
        file's tensors that have no place in the network; `without_effect`, biases likewise that an instance
        normalisation takes away; `summary`, a line for people.

    Raises:
        ModelError: The file is missing, damaged, holds anything but weights and plain values, or gives less than half
            of the network's parameters.
    """
    source = _read(Path(path))
    own = network.state_dict()
    namings = _namings(set(own), set(source.tensors))
    candidates = [(name, {ours: naming(ours) for ours in own}) for name, naming in namings.items()]
    names, pairs = max(candidates, key=lambda each: sum(other in source.tensors for other in each[1].values()))
    given, other_shape = {}, []
    for ours, theirs in pairs.items():
        if theirs not in source.tensors:
            continue
        offered = source.tensors[theirs]
        if names == "nnU-Net" and offered.ndim == 5:
            offered = offered.permute(0, 1, *(2 + axis for axis in source.axes))
        value = _fitted(offered, own[ours], widen=names == "nnU-Net" and ".conv_block." in ours)
        if value is None:
            other_shape.append(f"{ours}: {tuple(offered.shape)} there, {tuple(own[ours].shape)} here")
        else:
            given[ours] = value
    report = _report(source, names, own, pairs, set(given), other_shape)
    if 2 * report["parameters_matched"] < report["parameters_of"]:
        raise ModelError(_too_little(source, report, own))
    cast = {ours: value.to(own[ours].dtype) for ours, value in given.items()}  # a large float64 becomes infinite
    if not all(bool(torch.isfinite(value).all()) for value in cast.values()):
        message = (
            f"the weights '{source.path}' hold values that are not finite; their training went wrong. Take others."
        )
        raise ModelError(message)
    with torch.no_grad():
        for ours, value in given.items():
            own[ours].copy_(value)
    return report


def _read(path: Path) -> _Source:
    """Read the tensors of a file or folder.

    Raises:
        ModelError: It cannot be read, or not without running what it holds.
    """
    if path.is_dir() and (path / CARD).is_file():
        model = load_model(path)
        if len(model.networks) > 1:
            message = f"the model '{path}' has {len(model.networks)} members; a training starts from one"
            raise ModelError(message)
        return _Source(path, model.networks[0].state_dict(), model.weights_sha256[0])
    if path.is_dir():
        path = _in_bundle(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"the weights '{path}' cannot be read: {error.strerror or error}"
        raise ModelError(message) from error
    read: Callable[[bytes], object] = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        values = read(content)
    except ModelError as error:
        message = f"the weights '{path}' {error}"
        raise ModelError(message) from error
    except Exception as error:  # a damaged or hostile file makes the readers raise anything
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        if "weights_only" in reason:  # torch's advice to read it all the same, which would run what it holds
            reason = "torch cannot read it as tensors alone"
        message = f"the weights '{path}' are damaged, or hold more than tensors and plain values: {reason}"
        raise ModelError(message) from error
    tensors = _found_tensors(values)
    if not tensors:
        message = f"the weights '{path}' hold no tensors under their own names or under {', '.join(_NESTED)}"
        raise ModelError(message)
    return _Source(path, tensors, hashlib.sha256(content).hexdigest(), _axes_of_nnunet(values))


def _in_bundle(folder: Path) -> Path:
    path = folder / "models" / "model.pt"
    if path.is_file():
        return path
    if (folder / "models" / "model.ts").is_file():
        message = f"the bundle '{folder}' holds its network as TorchScript only, which would run. {_CONVERT}"
        raise ModelError(message)
    if (folder / "model" / CARD).is_file():
        message = f"'{folder}' is a run folder; name its model, '{folder / 'model'}'"
        raise ModelError(message)
    message = (
        f"'{folder}' is neither a model folder of medfocal ({CARD}) nor a MONAI bundle (models/model.pt). "
        "Name the file with the weights, such as nnU-Net's fold_0/checkpoint_final.pth."
    )
    raise ModelError(message)


def _read_safetensors(content: bytes) -> object:
    from safetensors.torch import load

    return load(content)


def _read_torch(content: bytes) -> object:
    if zipfile.is_zipfile(io.BytesIO(content)):
        _check_archive(content)
    stand_ins: list[Any] = [(_Nothing, name) for name in _NUMPY]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_archive(content: bytes) -> None:
    """Hold every part against its checksum, which torch does not read, and refuse what torch does not write.

    Raises:
        ModelError: A part is altered or compressed, or the archive is TorchScript.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ModelError("are a compressed archive, which torch does not write")
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            message = f"are TorchScript, which would run. {_CONVERT}"
            raise ModelError(message)
        altered = archive.testzip()
    if altered is not None:
        message = f"are damaged: the checksum of '{altered}' does not match. Fetch the file again."
        raise ModelError(message)


def _found_tensors(values: object) -> dict[str, Tensor]:
    """The named tensors of what a file holds, or of the part of it that has most."""
    if not isinstance(values, Mapping):
        return {}
    parts = [part for part in (values, *(values.get(key) for key in _NESTED)) if isinstance(part, Mapping)]
    found = [
        {name: value for name, value in part.items() if isinstance(name, str) and _is_plain(value)} for part in parts
    ]
    return {_bare(name): value.detach().as_subclass(Tensor) for name, value in max(found, key=len).items()}


def _axes_of_nnunet(values: object) -> tuple[int, ...]:
    """Which of nnU-Net's axes is I, J and K: it reads images as (K, J, I) and transposes them as its plans say."""
    for key in ("init_args", "plans", "transpose_forward"):
        values = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(values, list) or any(type(axis) is not int for axis in values) or sorted(values) != [0, 1, 2]:
        return (2, 1, 0)
    return (values.index(2), values.index(1), values.index(0))


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_complex())
    )


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


@dataclass(frozen=True)
class _Place:
    """Where a tensor of a network belongs.

    Attributes:
        part: "down", "up" or "head".
        level: From full resolution down.
        within: Its name in there.
        last: The last level of the other network.
        pooled: Whether the shortcut that it belongs to averages.
    """

    part: str
    level: int
    within: str
    last: int
    pooled: bool


def _namings(own: set[str], others: set[str]) -> dict[str, Callable[[str], str]]:
    """How medfocal and others name what the network calls by a name.

    Decoders are counted from below, so how many levels the others have decides where ours lie among them.
    """

    def num_upwards(pattern: str) -> int:
        return max((1 + int(found.group(1)) for name in others if (found := re.match(pattern, name))), default=0)

    def place(name: str, last: int) -> _Place:
        if not name.startswith("body."):
            level = 0 if name.startswith("head.") else 1 + int(name.split(".")[1])
            return _Place("head", level, name.rpartition(".")[2], last, pooled=False)
        level, within = name.count("next_layer."), name.removeprefix("body.").replace("next_layer.", "")
        part = "up" if within.startswith("upsample.") else "down"
        pooled = re.sub(r"(conv3|norm3)\..*", "conv3.project.conv.weight", name) in own
        return _Place(part, level, re.sub(r"^(up|down)sample\.", "", within), last, pooled)

    of_nnunet, of_dynunet = num_upwards(r"decoder\.transpconvs\.(\d{1,3})\."), num_upwards(r"upsamples\.(\d{1,3})\.")
    return {
        "medfocal": str,
        "nnU-Net": lambda name: _of_nnunet(place(name, of_nnunet)),
        "MONAI DynUNet": lambda name: _of_dynunet(place(name, of_dynunet)),
    }


def _of_nnunet(place: _Place) -> str:
    """Name in dynamic-network-architectures' PlainConvUNet and ResidualEncoderUNet (0.4)."""
    upwards = place.last - 1 - place.level
    if place.part == "head":
        return f"decoder.seg_layers.{upwards}.{place.within}"
    if place.within.startswith("transp_conv."):
        return f"decoder.transpconvs.{upwards}.{place.within.rpartition('.')[2]}"
    if place.within.startswith("stem."):
        return f"encoder.stem.convs.0.{_of_convolution(place.within.removeprefix('stem.'))}"
    if place.within.startswith("conv_block."):
        return f"decoder.stages.{upwards}.{_of_convolutions(place.within.removeprefix('conv_block.'))}"
    if not place.within.startswith("blocks."):
        return f"encoder.stages.{place.level}.0.{_of_convolutions(place.within)}"
    within = re.sub(r"\.norm([12])\.", r".conv\1.norm.", place.within)
    within = re.sub(r"\.conv3\.(project\.)?", f".skip.{int(place.pooled)}.", within)
    within = within.replace(".norm3.", f".skip.{int(place.pooled)}.norm.")
    return f"encoder.stages.{place.level}.{within}"


def _of_convolutions(within: str) -> str:
    """`conv2.conv.weight` is `convs.1.conv.weight`, `norm2.weight` is `convs.1.norm.weight`."""
    numbered = re.fullmatch(r"(conv|norm)([12])\.(.*)", within)
    if numbered is None:
        return f"convs.0.{_of_convolution(within)}"
    kind, number, rest = numbered.groups()
    return f"convs.{int(number) - 1}.{kind}.{rest.removeprefix('conv.')}"


def _of_convolution(within: str) -> str:
    return within.replace("adn.N.", "norm.")


def _of_dynunet(place: _Place) -> str:
    """Name in MONAI's DynUNet, whose parts ours are."""
    if place.part == "head":
        layer = "output_block" if place.level == 0 else f"deep_supervision_heads.{place.level - 1}"
        return f"{layer}.conv.conv.{place.within}"
    if place.part == "up":
        return f"upsamples.{place.last - 1 - place.level}.{place.within}"
    if place.level in (0, place.last):
        return f"{'input_block' if place.level == 0 else 'bottleneck'}.{place.within}"
    return f"downsamples.{place.level - 1}.{place.within}"


def _fitted(value: Tensor, wanted: Tensor, *, widen: bool) -> Tensor | None:
    """The value in the shape that is wanted, or None."""
    if value.is_floating_point() != wanted.is_floating_point():
        return None
    if value.shape == wanted.shape:
        return value
    if not widen or value.ndim != 5 or wanted.ndim != 5 or value.shape[:2] != wanted.shape[:2]:
        return None
    margins = [ours - theirs for theirs, ours in zip(value.shape[2:], wanted.shape[2:], strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        return None
    return F.pad(value, [margin // 2 for margin in reversed(margins) for _ in range(2)])


def _report(
    source: _Source,
    names: str,
    own: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    given: set[str],
    other_shape: list[str],
) -> dict[str, Any]:
    used = {pairs[ours] for ours in given}
    unused = [name for name in source.tensors if name not in used and not _TWICE.search(name)]
    convolutions = {
        pairs[ours] for ours, value in own.items() if value.ndim == 5 and "head" not in ours and "transp" not in ours
    }
    # A bias before an instance normalisation is a constant of its channel, which the mean takes away.
    normalised = {re.sub(r"weight$", "bias", name) for name in convolutions} if _has_instance_norm(own) else set()
    without_effect = [name for name in unused if name in normalised]
    counts = {"matched": len(given), "of": len(own)}
    sizes = {
        "parameters_matched": sum(own[name].numel() for name in given),
        "parameters_of": sum(value.numel() for value in own.values()),
    }
    left_random = [name for name in own if name not in given]
    not_used = [name for name in unused if name not in normalised]
    summary = (
        f"{counts['matched']} of {counts['of']} tensors, {sizes['parameters_matched']} of {sizes['parameters_of']} "
        f"parameters, from '{source.path}' (names of {names}); left random: {_some(left_random)}; "
        f"not used: {_some(not_used)}"
    )
    return {
        "source": str(source.path),
        "sha256": source.sha256,
        "names": names,
        **counts,
        **sizes,
        "left_random": left_random,
        "other_shape": other_shape,
        "not_used": not_used,
        "without_effect": without_effect,
        "summary": summary,
    }


def _has_instance_norm(own: Mapping[str, Tensor]) -> bool:
    return not any(name.endswith("running_mean") for name in own)


def _some(names: Sequence[str], most: int = 8) -> str:
    """Names from a file, which need be neither few nor short nor printable."""
    shown = [name if name.isprintable() and len(name) < 200 else ascii(name[:200]) for name in names[:most]]
    return ", ".join(shown + [f"and {len(names) - most} more"] * (len(names) > most)) or "none"


def _too_little(source: _Source, report: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """What was found and what was wanted."""
    wanted = [f"{name} {tuple(own[name].shape)}" for name in report["left_random"]]
    found = [f"{name} {tuple(value.shape)}" for name, value in source.tensors.items()]
    differing = report["other_shape"]
    return (
        f"the weights '{source.path}' give {report['parameters_matched']} of the network's {report['parameters_of']} "
        f"parameters, less than half. They hold {_some(found, 3)}; "
        + (f"shapes differ: {_some(differing, 3)}. " if differing else f"wanted are {_some(wanted, 3)}. ")
        + "Choose the network that they were made for (network=..., network.channels, kernel_sizes, strides), "
        "or leave them out (trainer.initial_weights=null)."
    )
