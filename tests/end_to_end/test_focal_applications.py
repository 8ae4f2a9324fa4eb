"""Focal loss where it is used: rare voxels of a volume, objects among anchors, a rare sentiment among texts.

Each test trains the same network three times, on the same batches, with cross-entropy from a zero bias,
cross-entropy from the prior bias, and focal loss from its prior bias, and prints the recall of the rare class on
held-out data at one false-positive rate. Which of the three is best is not asserted: these are small
problems at one budget. Asserted is that focal loss learns the rare class far above chance, and chance is a
recall that equals the false-positive rate.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfocal.losses import focal_loss, init_prior_bias_
from medfocal.losses.activation import Activation

SEED = 1
FOCAL = "focal loss, prior bias"
#: Name, gamma and whether the last bias starts at the prior.
VARIANTS = (("cross-entropy, zero bias", 0.0, False), ("cross-entropy, prior bias", 0.0, True), (FOCAL, 2.0, True))

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """Examples with a rare class, which is the last channel, and a small network whose last layer is the head.

    Attributes:
        training: Inputs and integer labels.
        held_out: The same of examples that training does not see.
        false_positive_rate: Share of the held-out negatives that may be called positive.
        alpha: Of the focal loss only.
    """

    name: str
    training: Examples
    held_out: Examples
    build_network: Callable[[], nn.Sequential]
    false_positive_rate: float
    steps: int
    batch_size: int
    learning_rate: float
    activation: str = "softmax"
    alpha: float | None = None


def train(problem: Problem, gamma: float, *, prior: bool, seed: int) -> nn.Sequential:
    """Train with focal loss, or at gamma 0 with cross-entropy; network and batches depend on the seed alone."""
    torch.manual_seed(seed)
    network = problem.build_network()
    options = {"gamma": gamma, "alpha": problem.alpha if gamma > 0.0 else None, "activation": problem.activation}
    inputs, labels = problem.training
    nn.init.zeros_(network[-1].bias)
    if prior:
        init_prior_bias_(network[-1], shares(labels), **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=problem.learning_rate)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(problem.steps):
        batch = torch.randint(len(inputs), (problem.batch_size,), generator=draw)
        optimizer.zero_grad()
        focal_loss(network(inputs[batch]), labels[batch], **options).backward()
        optimizer.step()
    return network


def shares(labels: Tensor) -> list[float]:
    """Share of each foreground class 1, 2, ... among the labels."""
    return (torch.bincount(labels.flatten())[1:] / labels.numel()).tolist()


@torch.no_grad()
def recall(problem: Problem, network: nn.Sequential) -> float:
    """Share of the held-out positives that score above all but `false_positive_rate` of the negatives."""
    inputs, labels = problem.held_out
    scores = Activation(problem.activation).log_odds(network(inputs))[:, -1].flatten()
    positive = labels.flatten() == labels.max()
    num_false = math.floor(problem.false_positive_rate * int((~positive).sum()))
    threshold = scores[~positive].topk(num_false + 1).values[-1]
    return float((scores[positive] > threshold).double().mean())


def compare(problem: Problem, *, seed: int) -> dict[str, float]:
    """Recall of each variant, printed as a table."""
    found = {name: recall(problem, train(problem, gamma, prior=prior, seed=seed)) for name, gamma, prior in VARIANTS}
    for name, value in found.items():
        at = f"at a false-positive rate of {problem.false_positive_rate:g}"
        print(f"{problem.name}, seed {seed}  {name:<26} recall {value:.2f} {at}")
    return found


def make_volumes(num: int, draw: torch.Generator) -> Examples:
    """Noisy volumes (num, 1, 20, 24, 28), each with a lesion of 7 voxels, vessels of its section, and spikes."""
    shape = torch.tensor([20, 24, 28])
    grid = torch.stack(torch.meshgrid(*(torch.arange(size) for size in shape.tolist()), indexing="ij"))

    def squared_offsets() -> Tensor:
        centre = (2 + torch.rand(num, 3, generator=draw) * (shape - 4)).long()
        return (grid - centre.reshape(num, 3, 1, 1, 1)).square()

    def contrast() -> Tensor:
        return 0.5 + 0.5 * torch.rand(num, 1, 1, 1, generator=draw)

    labels = squared_offsets().sum(dim=1) <= 1
    images = contrast() * labels
    for along in (0, 1, 2, 2):
        across = [axis for axis in range(3) if axis != along]
        vessel = squared_offsets()[:, across].sum(dim=1) <= 1
        images = torch.maximum(images, contrast() * vessel)
    spikes = torch.rand(images.shape, generator=draw) < 0.001
    images = torch.maximum(images, contrast() * spikes) + 0.15 * torch.randn(images.shape, generator=draw)
    return images.unsqueeze(1), labels.long()


def volumes(seed: int) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    return Problem(
        name="lesion voxels",
        training=make_volumes(32, draw),
        held_out=make_volumes(32, draw),
        build_network=lambda: nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 2, 1)
        ),
        false_positive_rate=0.001,
        steps=80,
        batch_size=2,
        learning_rate=0.01,
    )


def make_scenes(num: int, draw: torch.Generator) -> Examples:
    """Noisy images (num, 1, 128, 128) with a ring and six discs; the ring's centre labels one of 32 x 32 anchors."""
    grid = torch.stack(torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij"))

    def shape(*, is_ring: bool) -> tuple[Tensor, Tensor]:
        centre = torch.randint(8, 120, (num, 2), generator=draw)
        radius = 4 + 2 * torch.rand(num, 1, 1, generator=draw)
        distance = (grid - centre.reshape(num, 2, 1, 1)).square().sum(dim=1).sqrt()
        inside = (distance <= radius) & ((distance > radius - 2.5) | (not is_ring))
        return inside * (0.5 + 0.5 * torch.rand(num, 1, 1, generator=draw)), centre

    images, centre = shape(is_ring=True)
    for _ in range(6):
        images = torch.maximum(images, shape(is_ring=False)[0])
    labels = torch.zeros(num, 1, 32, 32, dtype=torch.long)
    labels[torch.arange(num), 0, centre[:, 0] // 4, centre[:, 1] // 4] = 1
    return (images + 0.2 * torch.randn(images.shape, generator=draw)).unsqueeze(1), labels


def scenes(seed: int) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    return Problem(
        name="object anchors",
        training=make_scenes(128, draw),
        held_out=make_scenes(128, draw),
        build_network=lambda: nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        ),
        false_positive_rate=0.001,
        steps=120,
        batch_size=8,
        learning_rate=0.005,
        activation="sigmoid",
        alpha=0.25,
    )


WORDS = """
the a my of we it was is on in at for and to with from room train hotel phone doctor nurse ticket lunch city table
good great lovely kind friendly clean quick helpful warm calm excellent pleasant
awful rude broken dirty never refund worst cold late useless angry shame
"""
PLAIN, PRAISE, ANGER = (line.split() for line in WORDS.strip().splitlines())
#: Of each class: its share of the texts, and the shares of praising and angry words in them.
SENTIMENTS = {"neutral": (0.685, 0.05, 0.04), "content": (0.30, 0.20, 0.03), "angry": (0.015, 0.03, 0.25)}


def write_text(sentiment: str, draw: random.Random) -> str:
    _, praise, anger = SENTIMENTS[sentiment]
    kinds = draw.choices((PLAIN, PRAISE, ANGER), (1 - praise - anger, praise, anger), k=draw.randint(8, 20))
    return " ".join(draw.choice(words) for words in kinds)


def make_texts(num: int, draw: random.Random) -> Examples:
    """Bags of words (num, 256), each word in the place of its hash, and the sentiments 0 to 2, of which 2 is rare."""
    labels = draw.choices(range(3), [share for share, *_ in SENTIMENTS.values()], k=num)
    bags = []
    for label in labels:
        places = [zlib.crc32(word.encode()) % 256 for word in write_text(list(SENTIMENTS)[label], draw).split()]
        bags.append(torch.bincount(torch.tensor(places), minlength=256))
    return torch.stack(bags).float(), torch.tensor(labels)


def texts(seed: int) -> Problem:
    draw = random.Random(seed)
    return Problem(
        name="angry texts",
        training=make_texts(6000, draw),
        held_out=make_texts(6000, draw),
        build_network=lambda: nn.Sequential(nn.Linear(256, 3)),
        false_positive_rate=0.01,
        steps=600,
        batch_size=64,
        learning_rate=0.02,
    )


def test_lesions_of_one_voxel_in_two_thousand_are_segmented_among_vessels():
    problem = volumes(SEED)
    assert 1 / 2200 < shares(problem.held_out[1])[-1] < 1 / 1800
    assert compare(problem, seed=SEED)[FOCAL] > 0.6


def test_one_object_in_a_thousand_anchors_is_detected_among_lookalikes():
    problem = scenes(SEED)
    assert shares(problem.held_out[1]) == [1 / 1024]
    assert compare(problem, seed=SEED)[FOCAL] > 0.6


def test_a_sentiment_of_one_text_in_seventy_is_recognised():
    problem = texts(SEED)
    assert 0.01 < shares(problem.held_out[1])[-1] < 0.02
    assert compare(problem, seed=SEED)[FOCAL] > 0.25
