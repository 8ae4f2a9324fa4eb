"""3D segmentation of rare lesions from fallible annotations."""

__version__ = "0.1.0"
