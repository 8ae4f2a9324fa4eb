"""Brain-like phantoms with small lesions, things that look like lesions, and readers who err.

Everything is drawn in millimetres of the patient's space and only then sampled on the grid, so that oblique,
flipped and anisotropic grids show the same anatomy. Amounts were set once, on physical grounds, and on no
network's result:

- Brain intensity is 1 before gain. Texture (Gaussian field, standard deviation .04, correlated over 2 to 4 mm)
  and acquisition noise (.04, independent voxels) add to a standard deviation of .057.
- A lesion adds .2 to .5 of the local intensity: 5 to 12.5 times the noise alone, 3.5 to 8.8 times noise and
  texture together, in a voxel that it fills. Small lesions fill few voxels: partial volume takes up to half away.
- Vessels have the contrast of lesions and differ by their shape only; spikes by having no partial volume; rims
  by their place; diffuse patches by their size and their contrast of .05 to .12. None of them knows where a
  lesion is: lesions are placed last, clear of vessels, rims and spikes, so that the reference is never in doubt.

The modules in the order in which a case is made: plan, geometry, grid, anatomy, lookalikes, lesion_shape, lesions,
image, readers, case, dataset.
"""

from medfocal.data.phantom.case import Phantom, make_phantom
from medfocal.data.phantom.dataset import write_phantoms
from medfocal.data.phantom.image import LOOKS, Look, StoredImage
from medfocal.data.phantom.lesions import Lesions
from medfocal.data.phantom.plan import SPLITS, CasePlan, plan_cases
from medfocal.data.phantom.readers import READERS, ReaderHabits

__all__ = [
    "LOOKS",
    "READERS",
    "SPLITS",
    "CasePlan",
    "Lesions",
    "Look",
    "Phantom",
    "ReaderHabits",
    "StoredImage",
    "make_phantom",
    "plan_cases",
    "write_phantoms",
]
