"""A few steps of a small network on a batch of four unequal patches, by each loss that parts could spoil."""

from dataclasses import replace
from functools import partial

import torch
from sound_settings import SOUND

from medfocal.losses import DiceFocalLoss, FocalLoss
from medfocal.networks import UNet3d
from medfocal.train.batches import Batch
from medfocal.train.ranks import ALONE
from medfocal.train.step import TrainingStep

CPU = torch.device("cpu")
SIZE = (8, 8, 8)


def batch(seed, *, soft=False, weighted=False):
    """Patches with many, few, one and no lesion voxel, the fourth without any voxel of full weight."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(4, 1, *SIZE, generator=generator)
    target = torch.zeros(4, *SIZE, dtype=torch.long)
    target[0, 1:6, 2:5, 3:7], target[1, 2:4, 5, 5], target[2, seed, 3, 3] = 1, 1, 1
    if soft:
        shares = 0.7 * target + 0.1 * torch.rand(target.shape, generator=generator)
        target = torch.stack([1 - shares, shares], dim=1)
    weight = torch.rand(4, *SIZE, generator=generator) * torch.tensor([1.0, 2.0, 1.0, 0.1])[:, None, None, None]
    return Batch(image, target, weight if weighted else None, ("a", "b", "c", "d"))


#: Loss, batch and network of each case.
CASES = {
    "alpha": (partial(FocalLoss, alpha=0.75), {}, {}),
    "positives": (partial(FocalLoss, gamma=1.0, normalize="positives"), {}, {}),
    "weights": (partial(FocalLoss, normalize="weight"), {"weighted": True}, {}),
    "dice and focal": (partial(DiceFocalLoss, alpha=0.75), {}, {}),
    "soft": (FocalLoss, {"soft": True, "weighted": True}, {}),
    "levels": (partial(FocalLoss, normalize="positives"), {"weighted": True}, {"deep_supervision": 1}),
}


def steps(name, *, ranks=ALONE, accumulate=1, sharding="none", num_steps=3):
    """Losses of some steps, and all weights after them."""
    build_loss, kind, network = CASES[name]
    torch.manual_seed(3)
    stepper = TrainingStep(
        UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16), **network).train(),
        partial(torch.optim.SGD, lr=0.3, momentum=0.9),
        settings=replace(SOUND, batch_size=4, accumulate=accumulate, sharding=sharding, gradient_clip_norm=0.2),
        autocast=None,
        ranks=ranks,
        device=CPU,
    )
    size = 4 // ranks.count
    own = slice(ranks.rank * size, (ranks.rank + 1) * size)
    losses = []
    for seed in range(1, num_steps + 1):
        whole = batch(seed, **kind)
        weight = None if whole.weight is None else whole.weight[own]
        mine = Batch(whole.image[own], whole.target[own], weight, whole.cases[own])
        losses.append(stepper.take(mine, build_loss(), stop=False, save=False).loss)
    weights = stepper.spread.gather().state_dict()
    return losses, torch.cat([value.flatten() for value in weights.values()]).tolist()


def in_two(ranks):
    """What two processes compute of each case."""
    found = {(name, 1, "none"): steps(name, ranks=ranks) for name in CASES}
    found["positives", 2, "none"] = steps("positives", ranks=ranks, accumulate=2)
    found["levels", 2, "none"] = steps("levels", ranks=ranks, accumulate=2)
    found["positives", 1, "fsdp"] = steps("positives", ranks=ranks, sharding="fsdp")
    found["positives", 2, "fsdp"] = steps("positives", ranks=ranks, sharding="fsdp", accumulate=2)
    return found


def faults(ranks):
    """What each process learns of a step that only the last one's patches, signal or clock concern."""
    taken = []
    for bad, stop, save in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        torch.manual_seed(3)
        network = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16))
        stepper = TrainingStep(
            network,
            partial(torch.optim.SGD, lr=0.3),
            settings=replace(SOUND, batch_size=4),
            autocast=None,
            ranks=ranks,
            device=CPU,
        )
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        whole, is_last = batch(1), ranks.rank + 1 == ranks.count
        image = whole.image[:2].clone()
        if bad and is_last:
            image[0, 0, 2, 2, 2] = float("inf")
        found = stepper.take(
            Batch(image, whole.target[:2], None, ("a", "b")), FocalLoss(), stop=stop and is_last, save=save and is_last
        )
        after = torch.cat([p.detach().flatten() for p in network.parameters()])
        taken.append((found.is_finite, found.is_fault, found.stops, found.saves, torch.equal(before, after)))
    return taken


def shares(ranks):
    """What the small services of `Ranks` give."""
    added = ranks.add(torch.tensor([1.0 + ranks.rank]))
    return {
        "own": ranks.own("abcde"),
        "in order": ranks.in_order([letter.upper() for letter in ranks.own("abcde")]),
        "few": ranks.in_order(ranks.own("a")),
        "none": ranks.in_order(ranks.own("")),
        "gather": ranks.gather(ranks.rank * 10),
        "told": ranks.told_by_first(f"rank {ranks.rank}"),
        "added": added.item(),
        "first": ranks.is_first,
        "device": ranks.device("cpu"),
    }


def everything(ranks):
    """All of it, as processes take seconds to start."""
    return {"in two": in_two(ranks), "faults": faults(ranks), "shares": shares(ranks)}
