"""Connected parts of masks, instance maps and probability maps, and their measurements."""

from medfocal.components.candidates import NUM_TOP_VOXELS, Confidence, find_at_threshold, find_candidates
from medfocal.components.parts import (
    CONNECTIVITIES,
    Components,
    NumberedVoxels,
    find_components,
    find_grown,
    find_instances,
)

__all__ = [
    "CONNECTIVITIES",
    "NUM_TOP_VOXELS",
    "Components",
    "Confidence",
    "NumberedVoxels",
    "find_at_threshold",
    "find_candidates",
    "find_components",
    "find_grown",
    "find_instances",
]
