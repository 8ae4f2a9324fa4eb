"""What scanners do to intensities, each on one channel of a training patch.

Plain torch, on the device of the patch, without waiting for it. `image` is float32 `(I, J, K)` and contiguous. The
functions named after an imperative change it in place, as one of many steps on a patch that nobody else holds.
Constant patches stay as they are but for noise and factors; nothing becomes NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medfocal.data.augment.warp import between, tensor_product

#: Highest power of the coordinates in a bias field, and number of powers.
BIAS_ORDER = 3

#: Standard deviations of a Gaussian after which it is cut, as `scipy.ndimage.gaussian_filter` does.
TRUNCATE = 4.0


def change_contrast(image: Tensor, factor: float, *, keeps_range: bool) -> None:
    """Multiply differences from the mean, in place; then cut to the range that was there, if asked."""
    low, high = torch.aminmax(image)
    mean = image.mean()
    image.sub_(mean).mul_(factor).add_(mean)
    if keeps_range:
        torch.clamp(image, low, high, out=image)


def change_gamma(image: Tensor, gamma: float, *, inverted: bool) -> None:
    """Raise intensities, brought to [0, 1], to a power, in place; mean and standard deviation are kept.

    Args:
        image: Any finite values, negative ones too.
        gamma: Above 0.
        inverted: Whether the negative is changed so, which stretches the other end.

    References:
        Isensee et al. 2021, "nnU-Net", Nature Methods 18, supplementary note 4.
    """
    if inverted:
        image.neg_()
    mean = image.mean()
    spread = torch.linalg.vector_norm(image - mean)
    low, high = torch.aminmax(image)
    image.sub_(low).div_((high - low).clamp_min(torch.finfo(torch.float32).tiny)).pow_(gamma)
    image.sub_(image.mean())
    now = torch.linalg.vector_norm(image)
    image.mul_(torch.where(now > 0, spread / now, 0)).add_(mean)  # 0 / 0 is not chosen: a constant stays one
    if inverted:
        image.neg_()


def change_bias_field(image: Tensor, strength: float, coefficients: NDArray[np.float64]) -> None:
    """Multiply what lies above the lowest value by a smooth field, in place.

    Args:
        image: The channel.
        strength: Largest absolute logarithm of the field: 0.3 gives factors from 0.74 to 1.35.
        coefficients: Of a polynomial of the coordinates, each from -1 to 1 across the patch, in the exponent:
            `(P, P, P)` by the power of each, P = `BIAS_ORDER` + 1.

    References:
        Van Leemput et al. 1999, "Automated model-based bias field correction of MR images of the brain", IEEE TMI 18:
        there too the logarithm is a polynomial.
    """
    bases = [np.linspace(-1, 1, n)[:, None] ** np.arange(BIAS_ORDER + 1) for n in image.shape]
    field = tensor_product(coefficients[None], bases, image.device)[0]
    largest = field.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    low = image.amin()
    image.sub_(low).mul_(field.mul_(strength / largest).exp_()).add_(low)


def blurred(image: Tensor, sigma_voxels: NDArray[np.float64]) -> Tensor:
    """Convolved with a Gaussian whose width differs by axis; the outermost voxels go on beyond the edge.

    Sums of shifted copies: for the few voxels of a narrow Gaussian quicker than a convolution or a Fourier transform.
    """
    for axis, sigma in enumerate(sigma_voxels):
        radius = int(TRUNCATE * sigma + 0.5)
        weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
        weights /= weights[0] + 2 * weights[1:].sum()
        length = image.shape[axis]
        around = [0] * 4 + [radius] * 2 + [0] * 4  # in pairs, the last axis first
        padded = F.pad(image[None, None], around[2 * axis : 2 * axis + 6], mode="replicate")[0, 0]
        image = padded.narrow(axis, radius, length) * float(weights[0])
        for step, weight in enumerate(weights[1:].tolist(), start=1):
            image.add_(padded.narrow(axis, radius - step, length), alpha=weight)
            image.add_(padded.narrow(axis, radius + step, length), alpha=weight)
    return image


def at_low_resolution(image: Tensor, scale: float) -> Tensor:
    """With `scale` times as many voxels along each axis, the nearest ones, and linearly back again."""
    for axis, length in enumerate(image.shape):
        few = max(1, round(length * scale))
        kept = np.floor((np.arange(few) + 0.5) * length / few)
        place = ((np.arange(length) + 0.5) * few / length - 0.5).clip(0, few - 1)
        first = np.floor(place).astype(int)
        second = np.minimum(first + 1, few - 1)
        image = between(image, axis, kept[first], kept[second], place - first)
    return image


def without_high_frequencies(image: Tensor, axis: int, kept: float) -> Tensor:
    """With the highest frequencies along an axis cut off, as where few lines were measured: Gibbs ringing.

    Args:
        image: The channel.
        axis: Along which.
        kept: Share of the frequencies that stays, the lowest ones; the mean always does.
    """
    frequencies = np.fft.rfftfreq(image.shape[axis])
    return _filtered(image, axis, (frequencies <= 0.5 * kept).astype(np.complex64))


def moved_while_measured(image: Tensor, axis: int, shifts_voxels: NDArray[np.float64]) -> Tensor:
    """Measured from the centre of k-space outwards while the head moved along an axis: ghosts beside edges.

    Args:
        image: The channel.
        axis: Of phase encoding and of the movement.
        shifts_voxels: Place in each of so many equal parts of the measurement. The first part holds the contrast: with
            a shift of 0 there, the image stays where its label is.
    """
    frequencies = np.fft.rfftfreq(image.shape[axis])
    part = np.minimum((frequencies / 0.5 * len(shifts_voxels)).astype(int), len(shifts_voxels) - 1)
    phase = np.exp(-2j * np.pi * frequencies * shifts_voxels[part])
    return _filtered(image, axis, phase.astype(np.complex64))


def _filtered(image: Tensor, axis: int, response: NDArray[np.complex64]) -> Tensor:
    """Each frequency along an axis times a number."""
    factors = torch.from_numpy(response).to(image.device).view([-1 if n == axis else 1 for n in range(3)])
    spectrum = torch.fft.rfft(image, dim=axis) * factors
    filtered: Tensor = torch.fft.irfft(spectrum, n=image.shape[axis], dim=axis)
    return filtered
