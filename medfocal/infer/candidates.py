"""From a probability map to candidates, and from candidates to the mask at an operating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_candidates

#: Columns of `<case>_candidates.csv`.
COLUMNS = (
    "case", "candidate", "confidence", "kept", "num_voxels", "volume_ml", "equivalent_diameter_mm",
    "i", "j", "k", "x_mm", "y_mm", "z_mm",
)  # fmt: skip


def form_candidates(
    probability: NDArray[np.float32], affine: NDArray[np.float64], rule: Mapping[str, Any]
) -> Components:
    """Candidates of a lesion probability map `(I, J, K)`, as the model's card says they are formed.

    Args:
        probability: In [0, 1].
        affine: Of its grid.
        rule: `extent_ratio`, `floor`, `connectivity`, `confidence` of `medfocal.components.find_candidates`.
    """
    return find_candidates(
        probability,
        affine,
        extent_ratio=rule["extent_ratio"],
        floor=rule["floor"],
        connectivity=rule["connectivity"],
        confidence=rule["confidence"],
    )


def mask_at(candidates: Components, threshold: float) -> NDArray[np.bool_]:
    """Union of the candidates with a confidence of at least `threshold`, bool `(I, J, K)`."""
    kept = np.concatenate([[False], candidates.confidence >= threshold])
    mask: NDArray[np.bool_] = kept[candidates.labels]
    return mask


def candidate_rows(case: str, candidates: Components, threshold: float) -> list[dict[str, object]]:
    """Rows of `<case>_candidates.csv`, highest confidence first."""
    order = np.argsort(-candidates.confidence, kind="stable")
    return [
        {
            "case": case,
            "candidate": int(n) + 1,
            "confidence": float(candidates.confidence[n]),
            "kept": bool(candidates.confidence[n] >= threshold),
            "num_voxels": int(candidates.num_voxels[n]),
            "volume_ml": float(candidates.volume_ml[n]),
            "equivalent_diameter_mm": float(candidates.equivalent_diameter_mm[n]),
            **dict(zip(("i", "j", "k"), map(float, candidates.centroid_voxel[n]), strict=True)),
            **dict(zip(("x_mm", "y_mm", "z_mm"), map(float, candidates.centroid_mm[n]), strict=True)),
        }
        for n in order
    ]
