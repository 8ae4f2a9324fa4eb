"""Networks that map images (B, channels, I, J, K) to logits on the same grid."""

from medfocal.networks.residual import ResidualUNet3d
from medfocal.networks.unet3d import UNet3d

__all__ = ["ResidualUNet3d", "UNet3d"]
