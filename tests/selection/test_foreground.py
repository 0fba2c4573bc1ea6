import numpy as np
import pytest
import torch

from builders_views import random_boxes, random_view
from qskd.data.batch import Batch, Targets
from qskd.selection.foreground import Foreground, covered


def test_shares_worked_by_hand():
    # A box over x 0.25-0.75, y 0-0.5 on a grid of 2 x 2: half of each upper cell.
    assert covered(torch.tensor([[0.5, 0.25, 0.5, 0.5]]), (2, 2)).tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_what_two_boxes_share_counts_once():
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.375, 0.5, 0.75, 1.0]])
    assert covered(boxes, (1, 1)).tolist() == [[0.75]]


def test_a_box_counts_only_inside_of_the_content():
    # Content is the left half of the canvas; a box over all of it and beyond covers the left cell alone.
    assert covered(torch.tensor([[0.5, 0.5, 3.0, 3.0]]), (1, 2), (1.0, 0.5)).tolist() == [[1.0, 0.0]]


def test_without_boxes_nothing_is_covered():
    assert covered(torch.zeros(0, 4), (2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 4)])
def test_shares_equal_those_of_counted_points(grid):
    boxes = random_boxes(6, generator=torch.Generator().manual_seed(1))
    points = 120  # along each side of a cell
    height, width = grid
    expected = np.zeros(grid)
    y = (np.arange(height * points) + 0.5) / (height * points)
    x = (np.arange(width * points) + 0.5) / (width * points)
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for cx, cy, w, h in boxes.double().tolist():
        inside |= (abs(y - cy) < h / 2)[:, None] & (abs(x - cx) < w / 2)[None]
    for row in range(height):
        for column in range(width):
            block = inside[row * points : (row + 1) * points, column * points : (column + 1) * points]
            expected[row, column] = block.mean()
    np.testing.assert_allclose(covered(boxes, grid), expected, atol=0.03)


def test_tokens_are_listed_level_by_level_and_know_the_padding():
    view = random_view(images=2, grids=((2, 4), (1, 2)), channels=(6, 6), strides=(16, 32))
    targets = Targets.from_lists(
        [torch.zeros(1).long(), torch.zeros(0).long()], [torch.tensor([[0.5, 0.5, 1, 1]]), torch.zeros(0, 4)]
    )
    batch = Batch(torch.zeros(2, 3, 32, 64), torch.tensor([[32, 32], [32, 64]]), targets, (0, 1), ((32, 32), (32, 64)))
    made = Foreground.of(view, batch)
    assert made.tokens.tolist() == [[1, 1, 0, 0, 1, 1, 0, 0, 1, 0], [0] * 10]
    assert made.area.tolist() == [1, 0]  # of the content
