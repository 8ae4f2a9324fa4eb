"""Networks that map images (B, channels, I, J, K) to logits on the same grid."""

from medfocal.networks.unet3d import UNet3d

__all__ = ["UNet3d"]
