"""Random changes of training batches: our own on the device of the network, or MONAI's on the CPU."""

from medfocal.data.augment.batch import BatchAugmentation, Changes
from medfocal.data.augment.monai import MonaiAugmentation

__all__ = ["BatchAugmentation", "Changes", "MonaiAugmentation"]
