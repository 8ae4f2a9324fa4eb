"""Targets of coarser levels: no lesion is lost, nothing that was not judged is taught."""

from __future__ import annotations

import itertools

import pytest
import torch

from medfocal.networks import UNet3d
from medfocal.train.supervision import coarser, level_weights

GRID = (4, 6, 8)
CASES = [(2, 3, 4), (4, 3, 4), (1, 2, 8), (4, 6, 8)]


def blocks(grid, shape):
    """Index of each coarse voxel with the slices of its block."""
    sizes = [full // size for full, size in zip(grid, shape, strict=True)]
    for index in itertools.product(*map(range, shape)):
        yield index, tuple(slice(at * size, (at + 1) * size) for at, size in zip(index, sizes, strict=True))


def test_each_level_weighs_half_of_the_one_before_and_all_together_1():
    assert level_weights(1) == [1.0]
    assert level_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="num_levels must be at least 1, got 0"):
        level_weights(0)


@pytest.mark.parametrize("with_background", [True, False])
def test_a_lesion_of_one_voxel_is_on_every_level_of_a_network(with_background):
    net = UNet3d(in_channels=1, out_channels=2, channels=(2, 2, 2, 2), strides=[1, [1, 2, 2], 2, 2], deep_supervision=2)
    shapes = [tuple(logits.shape[2:]) for logits in net(torch.rand(1, 1, 8, 16, 16))]
    assert shapes == [(8, 16, 16), (8, 8, 8), (4, 4, 4)]
    for voxel in [(0, 0, 0), (5, 11, 2), (7, 15, 15)]:
        classes = torch.zeros(1, 8, 16, 16, dtype=torch.long)
        classes[0][voxel] = 1
        lesion = classes[:, None].float()
        shares = torch.cat([1 - lesion, lesion], dim=1) if with_background else lesion
        for shape in shapes:
            there = tuple(at * size // full for at, size, full in zip(voxel, shape, (8, 16, 16), strict=True))
            of_classes, _ = coarser(classes, None, shape, with_background=with_background)
            of_shares, _ = coarser(shares, None, shape, with_background=with_background)
            assert of_classes[0].nonzero().tolist() == [list(there)]
            assert of_shares[0, -1].nonzero().tolist() == [list(there)]
            assert of_shares[0, -1][there] == 1


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("ignore_index", [None, 255, -1])
@pytest.mark.parametrize("weighted", [False, True])
def test_classes_and_weights_are_those_of_a_loop_over_blocks(shape, ignore_index, weighted):
    random = torch.Generator().manual_seed(4)
    target = torch.randint(0, 3, (2, *GRID), generator=random) * (torch.rand(2, *GRID, generator=random) < 0.3)
    if ignore_index is not None:
        target[torch.rand(2, *GRID, generator=random) < 0.6] = ignore_index
    weight = (torch.rand(2, *GRID, generator=random) - 0.5).clamp(min=0) if weighted else None
    classes, weights = coarser(target, weight, shape, with_background=True, ignore_index=ignore_index)
    assert classes.dtype == torch.int64
    assert (weights is None) == (weight is None)
    for batch in range(2):
        for index, inside in blocks(GRID, shape):
            values = target[batch][inside].flatten().tolist()
            ws = [1.0] * len(values) if weight is None else weight[batch][inside].flatten().tolist()
            judged = [(value, w) for value, w in zip(values, ws, strict=True) if value != ignore_index and w > 0]
            if not judged:
                expected, mean = (0 if ignore_index is None else ignore_index), 0.0
            else:
                expected = max(value for value, _ in judged)
                winners = [w for value, w in judged if value == expected]
                mean = sum(winners) / len(winners)
            assert classes[batch][index] == expected
            if weights is not None:
                assert float(weights[batch][index]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("with_background", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_and_weights_are_those_of_a_loop_over_blocks(shape, with_background, weighted):
    random = torch.Generator().manual_seed(5)
    shares = torch.rand(2, 3, *GRID, generator=random)
    shares = shares / shares.sum(dim=1, keepdim=True) if with_background else shares
    clean = torch.rand(2, 1, *GRID, generator=random) < 0.7
    nothing = torch.tensor([float(with_background), 0.0, 0.0]).reshape(1, 3, 1, 1, 1)
    shares = torch.where(clean, nothing, shares)
    weight = (torch.rand(2, *GRID, generator=random) - 0.6).clamp(min=0) if weighted else None
    found, weights = coarser(shares, weight, shape, with_background=with_background)
    assert found.dtype == torch.float32
    for batch in range(2):
        for index, inside in blocks(GRID, shape):
            values = shares[batch][(slice(None), *inside)].flatten(1)[1 if with_background else 0 :]
            ws = torch.ones(values.shape[1]) if weight is None else weight[batch][inside].flatten()
            values = values[:, ws > 0]
            ws = ws[ws > 0]
            highest = values.max(dim=1).values if len(ws) else torch.zeros(len(values))
            if with_background:
                total = float(highest.sum())
                highest = torch.cat([torch.tensor([max(0.0, 1 - total)]), highest / max(total, 1.0)])
                assert float(found[batch][(slice(None), *index)].sum()) == pytest.approx(1, rel=1e-5)
            torch.testing.assert_close(found[batch][(slice(None), *index)], highest)
            if weights is not None:
                votes = values.sum(dim=0) if values.any() else torch.ones(len(ws))
                mean = float((ws * votes).sum() / votes.sum()) if len(ws) else 0.0
                assert float(weights[batch][index]) == pytest.approx(mean, rel=1e-5)


def one_block(values, weight=None, **keywords):
    """The class and weight of one block of 2 x 2 x 1 voxels."""
    target = torch.tensor(values).reshape(1, 2, 2, 1)
    weights = None if weight is None else torch.tensor(weight).reshape(1, 2, 2, 1)
    found, mean = coarser(target, weights, (1, 1, 1), with_background=True, **keywords)
    return int(found), None if mean is None else round(float(mean), 6)


def test_what_was_judged_wins_over_what_is_ignored():
    assert one_block([9, 9, 9, 0], ignore_index=9) == (0, None)
    assert one_block([9, 9, 1, 0], ignore_index=9) == (1, None)
    assert one_block([9, 9, 9, 9], ignore_index=9) == (9, None)


def test_a_suspect_lesion_keeps_its_low_weight_among_sure_background():
    assert one_block([0, 1, 0, 0], [1.0, 0.25, 1.0, 1.0]) == (1, 0.25)


def test_a_lesion_of_weight_0_is_not_taught():
    assert one_block([0, 1, 0, 0], [0.5, 0.0, 0.5, 0.5]) == (0, 0.5)


def test_a_block_that_was_not_judged_weighs_nothing():
    assert one_block([0, 1, 0, 0], [0.0] * 4) == (0, 0.0)
    assert one_block([0, 1, 0, 0], [0.0] * 4, ignore_index=7) == (7, 0.0)


def test_two_kinds_of_lesion_share_a_block_of_a_softmax():
    shares = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]).reshape(1, 3, 2, 1, 1)
    shares[0, :, 1] = torch.tensor([0.5, 0.0, 0.5]).reshape(3, 1, 1)
    found, _ = coarser(shares, None, (1, 1, 1), with_background=True)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 2 / 3, 1 / 3]))


def test_the_same_grid_changes_nothing():
    target = torch.randint(0, 3, (2, *GRID))
    weight = torch.rand(2, *GRID) + 0.1
    found, weights = coarser(target, weight, GRID, with_background=True)
    assert torch.equal(found, target)
    torch.testing.assert_close(weights, weight)


@pytest.mark.parametrize("shape", [(3, 3, 4), (4, 6), (8, 6, 8), (0, 3, 4)])
def test_a_grid_that_does_not_divide_the_target_is_refused(shape):
    with pytest.raises(ValueError, match=r"must divide that of the target, \(4, 6, 8\), got"):
        coarser(torch.zeros(1, *GRID, dtype=torch.long), None, shape, with_background=True)


def test_weights_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"weights must have the shape \(1, 4, 6, 8\), got \(1, 8, 6, 4\)"):
        coarser(torch.zeros(1, *GRID, dtype=torch.long), torch.ones(1, 8, 6, 4), (2, 3, 4), with_background=True)
