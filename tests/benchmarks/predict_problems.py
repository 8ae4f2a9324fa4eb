"""The cases and the programs that the benchmark of prediction compares."""

from __future__ import annotations

import dataclasses
import math

#: What the largest case may take with `max_memory_mb`.
MOST_MB = 3000


@dataclasses.dataclass(frozen=True)
class Row:
    """A program with its settings.

    Attributes:
        name: In tables.
        program: Of `predict_peer.PROGRAMS`.
        batch: Windows at once.
        precision: Of medfocal; the others compute in float32 on a CPU.
        stops: How far it goes, "sums" or "all"; medfocal always gives all.
        is_cropped: Whether it is given the box of what is not 0 instead of the whole array.
    """

    name: str
    program: str
    batch: int = 1
    precision: str = "float32"
    stops: str = "all"
    is_cropped: bool = False


@dataclasses.dataclass(frozen=True)
class Problem:
    """A case and who predicts it.

    Attributes:
        name: Of the part of the benchmark.
        shape: Voxels.
        window: Side of the window, in voxels.
        network: Of `predict_peer.network_of`.
        image: Of `predict_peer.EXTENTS`.
        channels: Of the logits, one measurement for each.
        timed_channels: Those of them whose time is measured.
        rows: Whose time is measured.
        memory_rows: Whose memory is, medfocal first.
    """

    name: str
    shape: tuple[int, int, int]
    window: int
    network: str
    image: str
    channels: tuple[int, ...]
    timed_channels: tuple[int, ...]
    rows: tuple[Row, ...]
    memory_rows: tuple[Row, ...] = ()

    @property
    def image_mb(self) -> float:
        """Of float32 voxels."""
        return 4 * math.prod(self.shape) / 1e6

    @property
    def title(self) -> str:
        """Shape in words."""
        return "x".join(map(str, self.shape))

    def expected_mb(self, row: Row, num_channels: int) -> float:
        """About what a row takes, image and label included."""
        sums = {"medfocal": 1, "monai": num_channels, "nnunet": num_channels / 2}[row.program]
        copies = 2 if row.program == "monai" and row.stops == "all" else 1
        return self.image_mb * (sums * copies + 4) + 1000


OURS, OURS_4 = "medfocal", "medfocal, 4 windows at once"
OURS_AUTO = "medfocal, precision auto"
MONAI, MONAI_4 = "MONAI", "MONAI, 4 windows at once"
MONAI_SUMS = "MONAI, mean logits only"
NNUNET, NNUNET_SUMS = "nnU-Net", "nnU-Net, mean logits only"
NNUNET_CROPPED = "nnU-Net, given the cropped array"

OVERHEAD_ROWS = (
    Row(OURS, "medfocal"),
    Row(OURS_4, "medfocal", batch=4),
    Row(MONAI, "monai"),
    Row(MONAI_4, "monai", batch=4),
    Row(NNUNET, "nnunet"),
)
MEMORY_ROWS = (
    Row(OURS, "medfocal"),
    Row(OURS_4, "medfocal", batch=4),
    Row(MONAI, "monai"),
    Row(MONAI_4, "monai", batch=4),
    Row(MONAI_SUMS, "monai", stops="sums"),
    Row(NNUNET, "nnunet"),
    Row(NNUNET_SUMS, "nnunet", stops="sums"),
)
LARGE_ROWS = tuple(row for row in OVERHEAD_ROWS if row.batch == 1)
LARGE_MEMORY_ROWS = tuple(row for row in MEMORY_ROWS if row.batch == 1)
WHOLE_ROWS = (
    Row(OURS_AUTO, "medfocal", precision="auto"),
    Row(OURS, "medfocal"),
    Row(MONAI, "monai"),
    Row(NNUNET, "nnunet"),
    Row(NNUNET_CROPPED, "nnunet", is_cropped=True),
)

FREE, UNET = "weight and bias", "U-Net"
MRI, CT = (160, 192, 160), (512, 512, 400)
SMALL = Problem("MRI", MRI, 64, FREE, "noise", (2, 5, 25), (2, 5, 25), OVERHEAD_ROWS, MEMORY_ROWS)
LARGE = Problem("CT", CT, 128, FREE, "noise", (2, 5, 25), (2, 5), LARGE_ROWS, LARGE_MEMORY_ROWS)
BRAIN = Problem("brain", MRI, 64, UNET, "brain", (2,), (2,), WHOLE_ROWS)
HEAD = Problem("head", MRI, 64, UNET, "head", (2,), (2,), WHOLE_ROWS)
NETWORK = (BRAIN, HEAD)
