"""Connected components in torch: against scipy's on random and awkward masks, and hand-drawn contacts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse.csgraph
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medfocal.losses.instances import _smallest_of_component, label_instances

CONNECTIVITIES = [(1, 2), (2, 4), (2, 8), (3, 6), (3, 18), (3, 26)]
AXES = {2: 1, 4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def scipy_numbers(mask, connectivity):
    """Components of each case by scipy, renumbered by their first voxel, so that its order does not matter."""
    structure = scipy.ndimage.generate_binary_structure(mask.ndim - 1, AXES[connectivity])
    numbers = np.zeros(mask.shape, dtype=np.int32)
    for case, volume in enumerate(mask.numpy()):
        found, num_found = scipy.ndimage.label(volume, structure=structure)
        values, first = np.unique(found, return_index=True)
        in_order = [value for value in values[np.argsort(first)] if value != 0]
        renumbered = np.zeros(num_found + 1, dtype=np.int32)
        renumbered[in_order] = np.arange(1, num_found + 1)
        numbers[case] = renumbered[found]
    return torch.from_numpy(numbers)


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def spiral(size):
    """One line, one voxel wide with gaps of one voxel, from the corner to the centre."""
    mask = np.zeros((size, size), dtype=bool)
    row, column, step = 0, 0, (0, 1)
    mask[row, column] = True
    while True:
        moved = False
        while True:
            ahead, beyond = (row + step[0], column + step[1]), (row + 2 * step[0], column + 2 * step[1])
            if not (0 <= ahead[0] < size and 0 <= ahead[1] < size) or mask[ahead]:
                break
            if 0 <= beyond[0] < size and 0 <= beyond[1] < size and mask[beyond]:
                break
            row, column = ahead
            mask[row, column] = moved = True
        if not moved:
            return torch.from_numpy(mask)[None]
        step = (step[1], -step[0])


@pytest.mark.parametrize(("num_axes", "connectivity"), CONNECTIVITIES)
@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 0.95])
def test_random_masks_have_the_components_that_scipy_finds(num_axes, connectivity, density):
    shape = (3, *{1: (301,), 2: (37, 23), 3: (13, 9, 17)}[num_axes])
    mask = random_mask(shape, density, seed=connectivity)
    torch.testing.assert_close(
        label_instances(mask, connectivity=connectivity), scipy_numbers(mask, connectivity), rtol=0, atol=0
    )


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 31), (1, 31, 1), (31, 1, 1), (1, 7, 5), (7, 1, 5), (7, 5, 1)])
def test_axes_of_a_single_voxel_have_no_neighbours(shape, connectivity):
    mask = random_mask((2, *shape), 0.5, seed=5)
    torch.testing.assert_close(
        label_instances(mask, connectivity=connectivity), scipy_numbers(mask, connectivity), rtol=0, atol=0
    )


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_long_spiral_is_one_component(connectivity, transposed):
    mask = spiral(61)
    assert mask.sum() > 1700
    numbers = label_instances(mask.mT if transposed else mask, connectivity=connectivity)
    assert torch.equal(numbers, (mask.mT if transposed else mask).int())


def test_snake_through_all_three_axes_is_one_component_until_it_is_cut():
    """Boustrophedon along the first axis: neighbouring columns are joined at alternating ends only."""
    mask = torch.zeros(1, 21, 19, 3, dtype=torch.bool)
    mask[0, :, ::2, 1] = True
    for turn, column in enumerate(range(1, 19, 2)):
        mask[0, -1 if turn % 2 == 0 else 0, column, 1] = True
    assert torch.equal(label_instances(mask, connectivity=6), mask.int())
    mask[0, 10, 8, 1] = False
    numbers = label_instances(mask, connectivity=26)
    assert numbers.max() == 2
    assert torch.equal(numbers, scipy_numbers(mask, 26))


@pytest.mark.parametrize(
    ("second", "joined_at"),
    [
        ((1, 1, 2), {6, 18, 26}),
        ((1, 2, 0), {18, 26}),
        ((2, 1, 0), {18, 26}),
        ((2, 2, 1), {18, 26}),
        ((2, 2, 2), {26}),
        ((2, 0, 0), {26}),
        ((1, 1, 3), set()),
    ],
)
def test_contact_by_face_edge_and_corner_joins_at_6_18_and_26(second, joined_at):
    mask = torch.zeros(1, 3, 4, 5, dtype=torch.bool)
    mask[0, 1, 1, 1] = mask[0][second] = True
    joined = {n for n in (6, 18, 26) if label_instances(mask, connectivity=n).max() == 1}
    assert joined == joined_at


@pytest.mark.parametrize(("last", "numbers"), [(3, [1, 2]), (11, [1, 2]), (23, [1, 1])])
def test_last_voxel_of_a_line_slice_or_case_does_not_touch_the_first_of_the_next(last, numbers):
    mask = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    mask.view(-1)[last : last + 2] = True
    assert label_instances(mask, connectivity=26)[mask].tolist() == numbers


def test_every_case_counts_from_1_in_the_order_of_first_voxels():
    mask = torch.tensor(
        [[[0, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 0, 0, 0]], [[0] * 5] * 3, [[1, 0, 1, 0, 1]] * 3]
    ).bool()
    numbers = label_instances(mask, connectivity=4)
    assert numbers.dtype == torch.int32
    assert numbers[0].tolist() == [[0, 0, 1, 0, 2], [3, 0, 0, 0, 2], [3, 3, 0, 0, 0]]
    assert (numbers[1] == 0).all()
    assert numbers[2].tolist() == [[1, 0, 2, 0, 3]] * 3


@pytest.mark.parametrize(("num_axes", "connectivity"), CONNECTIVITIES)
def test_full_mask_is_one_component_and_empty_mask_none(num_axes, connectivity):
    full = torch.ones(2, *(5, 3, 7)[:num_axes], dtype=torch.bool)
    assert (label_instances(full, connectivity=connectivity) == 1).all()
    assert (label_instances(~full, connectivity=connectivity) == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_mask_without_voxels_has_numbers_of_its_shape(shape):
    numbers = label_instances(torch.zeros(shape, dtype=torch.bool), connectivity=8)
    assert numbers.shape == shape
    assert numbers.dtype == torch.int32


def test_mask_is_left_as_it_was_and_need_not_be_contiguous():
    mask = random_mask((9, 2, 7, 5), 0.4).movedim(0, -1)
    before = mask.clone()
    numbers = label_instances(mask, connectivity=18)
    assert torch.equal(mask, before)
    assert torch.equal(numbers, scipy_numbers(before, 18))


@pytest.mark.parametrize("num_edges", [0, 300, 1000, 5000])
def test_smallest_nodes_of_random_graphs_are_those_of_scipy(num_edges):
    nodes = 2000
    first, second = torch.randint(nodes, (2, num_edges), generator=torch.Generator().manual_seed(num_edges))
    graph = scipy.sparse.coo_array((np.ones(num_edges), (first.numpy(), second.numpy())), shape=(nodes, nodes))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    smallest = np.full(nodes, nodes)
    np.minimum.at(smallest, component, np.arange(nodes))
    expected = torch.from_numpy(smallest[component])
    assert torch.equal(_smallest_of_component(nodes, first, second), expected)


class CountRounds(TorchDispatchMode):
    """Counts the hooking operations, one a round."""

    rounds = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.rounds += "scatter_reduce" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["rising", "falling", "zigzag", "random"])
def test_chain_of_many_nodes_is_joined_in_at_most_two_rounds_per_halving(order):
    nodes = 1 << 12
    chain = torch.arange(nodes)
    if order == "falling":
        chain = chain.flip(0)
    elif order == "zigzag":
        chain = torch.stack((chain[: nodes // 2], chain[nodes // 2 :].flip(0)), dim=1).flatten()
    elif order == "random":
        chain = torch.randperm(nodes, generator=torch.Generator().manual_seed(2))
    with CountRounds() as counted:
        smallest = _smallest_of_component(nodes, chain[:-1], chain[1:])
    assert (smallest == 0).all()
    assert 1 <= counted.rounds <= 2 * 12


@pytest.mark.parametrize(
    ("mask", "connectivity", "message"),
    [
        (torch.zeros(1, 3, 3, 3), 26, r"mask must be bool .* got torch.float32 of shape \(1, 3, 3, 3\)"),
        (torch.zeros(1, dtype=torch.bool), 2, r"1 to 3 spatial axes, got torch.bool of shape \(1,\)"),
        (torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool), 26, "1 to 3 spatial axes"),
        (torch.zeros(1, 3, 3, 3, dtype=torch.bool), 8, "connectivity must be 6 or 18 or 26 for 3 spatial axes, got 8"),
        (torch.zeros(1, 3, 3, dtype=torch.bool), 26, r"must be 4 or 8 for 2 spatial axes, got 26 .*\(1, 3, 3\)"),
        (torch.zeros(1, 3, dtype=torch.bool), 4, "must be 2 for 1 spatial axes, got 4"),
    ],
)
def test_mask_or_connectivity_that_does_not_fit_is_refused(mask, connectivity, message):
    with pytest.raises(ValueError, match=message):
        label_instances(mask, connectivity=connectivity)
