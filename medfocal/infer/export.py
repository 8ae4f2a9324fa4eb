"""A model as a file for another runtime: ONNX, torch.export or a MONAI bundle, held against the model it came from."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.errors import ConfigError, ModelError, ResourceError
from medfocal.files import atomic_write, make_folder
from medfocal.infer.bundle import bundle_files, run_bundle
from medfocal.infer.window import class_probabilities
from medfocal.model import CARD, FORMAT_VERSION, Model

if TYPE_CHECKING:
    import torch
    from torch import nn

#: How far probabilities of what is written may be from the model's.
TOLERANCE = 1e-4
#: Names of the input and of the output of an exported graph.
INPUT, OUTPUT = "image", "probability"
#: Windows in the example that a graph is traced with: torch takes 1 for a constant.
NUM_TRACED = 2


class Format(StrEnum):
    """What a model can be written as."""

    MONAI_BUNDLE = "monai_bundle"
    ONNX = "onnx"
    TORCH_EXPORT = "torch_export"

    @property
    def ending(self) -> str:
        """Of the file; a bundle is a folder of any name."""
        return {Format.ONNX: ".onnx", Format.TORCH_EXPORT: ".pt2"}.get(self, "")

    def check_output(self, output: str) -> None:
        """See that this can be written to a path of that name.

        Raises:
            ValueError: It names nothing, or has another ending.
        """
        if not output.strip() or not Path(output).name:
            message = f"output must name a {'file' if self.ending else 'folder'}, got {output!r}"
            raise ValueError(message)
        if self.ending and Path(output).suffix != self.ending:
            message = f"output must end in {self.ending}, which is what format={self} writes, got '{output}'"
            raise ValueError(message)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: File or folder.
        difference: Largest difference of a probability from the model's, on the sample.
        shape: Of the sample, `(1, C, I, J, K)`.
    """

    path: Path
    difference: float
    shape: tuple[int, ...]


def export_model(model: Model, kind: Format, output: Path) -> Exported:
    """Write a model for another runtime, once the result is seen to compute the same on a window of noise.

    The graph of `onnx` and of `torch_export` takes windows, float32 `(B, C, I, J, K)` of the card's window size and
    any B, and gives probabilities of the lesion classes, float32 `(B, K, I, J, K)`, as `class_probabilities` does, the
    mean over the members. Preprocessing, windowing, the card's correction (which is for the mean of windows) and
    candidates are not in it; the card is, as JSON. A bundle has all of these but candidates, and one member.

    Args:
        model: From `medfocal.model.load_model`, on the CPU.
        kind: What to write.
        output: A bundle's folder, which is new or empty; else a file, which is replaced.

    Returns:
        Where it is and how near it comes.

    Raises:
        ConfigError: A package is missing, the output has another ending, or the folder holds something.
        ModelError: The result differs by more than `TOLERANCE`, or the model cannot be written so. Nothing is written.
        ResourceError: It cannot be written.
    """
    output = Path(output)
    try:
        kind.check_output(str(output))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if kind is Format.MONAI_BUNDLE:
        return _export_bundle(model, output)
    make, run = (_to_onnx, run_onnx) if kind is Format.ONNX else (_to_torch_export, run_torch_export)
    if kind is Format.ONNX:
        _require("onnx", "onnxruntime", "onnxscript")
    sample = sample_window(model)
    content = make(model)
    difference = _agreement(model, sample, run(content, sample))
    with atomic_write(output, "wb") as file:
        file.write(content)
    return Exported(output, difference, tuple(sample.shape))


def sample_window(model: Model, seed: int = 0) -> torch.Tensor:
    """A window of standard normal noise, float32 `(1, C, I, J, K)`, the same for the same seed."""
    import torch

    shape = (1, len(model.card.channels), *model.card.window["size"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_probabilities(model: Model, windows: torch.Tensor) -> torch.Tensor:
    """What a model says of windows `(B, C, I, J, K)`: the mean over members, float32 `(B, K, I, J, K)`."""
    import torch

    with torch.inference_mode():
        said: torch.Tensor = _probabilities(model)(windows)
    return said


def run_onnx(content: bytes, windows: torch.Tensor) -> torch.Tensor:
    """Run an ONNX file under onnxruntime on the CPU."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: windows.numpy()})[0])


def run_torch_export(content: bytes, windows: torch.Tensor) -> torch.Tensor:
    """Run a `.pt2` on the CPU. torch may execute what such a file holds: only for one that was made here."""
    import torch

    program = torch.export.load(io.BytesIO(content))
    with torch.inference_mode():
        said: torch.Tensor = program.module()(windows)
    return said


def _agreement(model: Model, sample: torch.Tensor, said: torch.Tensor) -> float:
    """How far probabilities of a sample are from the model's.

    Raises:
        ModelError: Further than `TOLERANCE`, or not finite.
    """
    meant = mean_probabilities(model, sample)
    if said.shape != meant.shape:
        message = f"what was exported gives {tuple(said.shape)} values for a window, the model {tuple(meant.shape)}"
        raise ModelError(message)
    difference = float((said - meant).abs().max())
    if not difference <= TOLERANCE:  # NaN is not
        message = (
            f"what was exported does not compute the same: probabilities of a window differ by up to {difference:.2g}, "
            f"and {TOLERANCE:g} is allowed. Nothing was written. Are the weights finite, and the versions those of "
            "constraints.txt?"
        )
        raise ModelError(message)
    return difference


def _probabilities(model: Model) -> nn.Module:
    """A network that gives the mean of the members' probabilities."""
    from torch import nn

    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(model.networks)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            first, *others = (class_probabilities(network(image), model.card.activation) for network in self.networks)
            for other in others:
                first = first + other
            return first / len(self.networks) if others else first

    return Probabilities().eval()


def _card_as_text(model: Model) -> str:
    """The card and the digests of the weights, as JSON."""
    values = {"format_version": FORMAT_VERSION, **model.card.to_dict(), "weights_sha256": list(model.weights_sha256)}
    return json.dumps(values, indent=2, ensure_ascii=False)


def _traced_shapes(model: Model) -> tuple[torch.Tensor, tuple[dict[int, Any]]]:
    """An example to trace with, and that its first axis may have any length."""
    import torch

    example = torch.zeros(NUM_TRACED, len(model.card.channels), *model.card.window["size"])
    return example, ({0: torch.export.Dim("batch")},)


def _to_onnx(model: Model) -> bytes:
    import torch

    example, shapes = _traced_shapes(model)
    with _traced("ONNX"):
        program = torch.onnx.export(
            _probabilities(model),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None, "with dynamo=True and no file there is a program"
        made = program.model_proto
        entry = made.metadata_props.add()
        entry.key, entry.value = CARD, _card_as_text(model)
        content: bytes = made.SerializeToString()
    return content


def _to_torch_export(model: Model) -> bytes:
    import torch

    example, shapes = _traced_shapes(model)
    buffer = io.BytesIO()
    with _traced("torch.export"):
        program = torch.export.export(_probabilities(model), (example,), dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={CARD: _card_as_text(model)})
    return buffer.getvalue()


@contextmanager
def _traced(what: str) -> Iterator[None]:
    """Turn what torch's exporters raise into a ModelError, and keep their remarks to themselves.

    Raises:
        ModelError: The network cannot be traced, or is larger than the format holds.
    """
    import warnings

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        message = f"the network cannot be written as {what}: {(str(error).splitlines() or [''])[0][:300]}"
        raise ModelError(message) from error
    finally:
        logging.disable(logging.NOTSET)


def _require(*packages: str) -> None:
    """See that what the ONNX export takes is installed.

    Raises:
        ConfigError: It is not.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        message = f"format=onnx needs {', '.join(missing)}, not installed here: pip install 'medfocal[onnx]'"
        raise ConfigError(message)


def _export_bundle(model: Model, output: Path) -> Exported:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        message = f"output '{output}' exists and a bundle replaces nothing; remove it or name another folder"
        raise ConfigError(message)
    sample = sample_window(model)
    files = bundle_files(model, card=_card_as_text(model))
    difference = _agreement(model, sample, run_bundle(files, sample))
    _write_folder(output, files)
    return Exported(output, difference, tuple(sample.shape))


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder that takes its name once all of it is there.

    Raises:
        ResourceError: It cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    make_folder(folder.parent)
    try:
        for name, content in files.items():
            with atomic_write(temporary / name, "wb") as file:
                file.write(content)
        temporary.rename(folder)
    except OSError as error:
        message = f"cannot write '{folder}': {error.strerror or error}. Choose another folder."
        raise ResourceError(message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
