"""How much of each cell of a map lies within objects."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qskd.boxes import cxcywh_to_xyxy
from qskd.data.batch import Batch
from qskd.models.view import DetrView


@dataclass(frozen=True, slots=True)
class Foreground:
    """What objects cover of B images."""

    tokens: Tensor  # [B, S] float32, share of the area of each memory token
    area: Tensor  # [B] float32, share of the image

    @classmethod
    def of(cls, view: DetrView, batch: Batch) -> "Foreground":
        """The foreground of all objects of a batch.

        Args:
            view: its maps say how many cells each level has; a map covers the whole canvas.
            batch: what the view was read from.
        """
        canvas = batch.content.new_tensor(batch.pixels.shape[-2:])
        content = (batch.content / canvas).tolist()
        tokens, area = [], []
        for place, count in enumerate(batch.targets.counts):
            boxes = batch.targets.boxes[place, :count].cpu()
            shares = [covered(boxes, (level.shape[-2], level.shape[-1]), content[place]) for level in view.memory]
            tokens.append(np.concatenate([share.ravel() for share in shares]))
            area.append(float(covered(boxes, (1, 1))[0, 0]))
        like = view.boxes.new_zeros((), dtype=torch.float32)
        return cls(like.new_tensor(np.stack(tokens)), like.new_tensor(area))


def covered(boxes: Tensor, grid: tuple[int, int], content: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float64]:
    """[h, w] share of each cell that lies within the union of boxes, exactly.

    Args:
        boxes: [N, 4] cxcywh, fractions of the content; what lies outside of it counts for nothing.
        grid: (h, w) of cells of equal size over the canvas.
        content: (height, width) of the content in the canvas' upper left, as fractions of the canvas.
    """
    corners = cxcywh_to_xyxy(boxes.double()).clamp(0.0, 1.0).numpy() * np.tile(content[::-1], 2)
    x, columns = _cut(corners[:, 0::2], grid[1])
    y, rows = _cut(corners[:, 1::2], grid[0])
    # Between two neighbouring edges of cells or boxes, a point stands for the whole stretch.
    in_x = (corners[:, None, 0] < x) & (x < corners[:, None, 2])  # [N, X]
    in_y = (corners[:, None, 1] < y) & (y < corners[:, None, 3])  # [N, Y]
    is_inside = (in_y[:, :, None] & in_x[:, None]).any(0)  # [Y, X]
    return rows @ is_inside @ columns.T


def _cut(edges: NDArray[np.float64], cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An axis cut at all edges: the middle of each stretch [X], and its share of each cell [cells, X]."""
    marks = np.unique(np.concatenate([np.arange(cells + 1) / cells, edges.ravel()]))
    middle, length = (marks[1:] + marks[:-1]) / 2, np.diff(marks)
    cell = np.minimum((middle * cells).astype(int), cells - 1)
    return middle, (cell == np.arange(cells)[:, None]) * length * cells
