"""Which sampling points of a teacher's deformable attention a student's begin as."""

from collections.abc import Sequence

from torch import Tensor, nn

from qskd.models.channels import with_channels
from qskd.models.classes import copy_rows
from qskd.models.lineage import Layer, same_meaning

_AXES = 2


def copy_points(to: Layer, of: Layer, finer: int, together: int) -> list[tuple[Tensor, int]]:
    """Copy what says where a deformable attention looks, or how much each place counts, as far as both have the same.

    Args:
        to: the layer that is changed.
        of: the layer that it comes from.
        finer: how many maps its model has that are finer than the other's.
        together: neighbouring channels that stay neighbours.

    Returns:
        Every tensor of the layer with the number of its elements that were copied.
    """
    is_offset = to.name.endswith("offsets")
    origin = same_meaning(to, of) if is_offset else of
    if origin is None:
        return []
    mine, module, theirs, its = to.holder, to.module, origin.holder, origin.module
    if not (isinstance(module, nn.Linear) and isinstance(its, nn.Linear) and hasattr(theirs, "n_heads")):
        return []
    if module.in_features > its.in_features:
        return []
    scale = _scale(theirs) / _scale(mine) if is_offset else 1.0
    columns = with_channels(its.weight, module.weight.shape, 1, together)
    pairs = [(module.weight, scale * columns), (module.bias, scale * its.bias)]
    return copy_rows(pairs, point_rows(mine, theirs, finer, is_offset))


def _scale(attention: nn.Module) -> float:
    """What offsets are multiplied by, beyond what all models of the family share."""
    return float(getattr(attention, "offset_scale", 1.0))


def point_rows(mine: nn.Module, theirs: nn.Module, finer: int, is_offset: bool) -> list[int]:
    """The source row of each row of a layer that says where heads look, or how much each of the places counts.

    Rows lie by head, map and point. A head begins as the one whose channels its own middle channel is taken from; a map
    as the one of its stride; points only where a map has as many in both, since offsets from a box are in shares of
    that number.

    Args:
        mine: the student's deformable attention, which holds the layer.
        theirs: the teacher's.
        finer: how many maps the teacher has that are finer than the student's.
        is_offset: whether rows are coordinates of points (``sampling_offsets``) rather than points.

    Returns:
        A source row for every row of the student's layer; -1 where the teacher has none.
    """
    (heads, points), (their_heads, their_points) = _layout(mine), _layout(theirs)
    per_head, begins = sum(their_points), [sum(their_points[:level]) for level in range(len(their_points))]
    rows: list[int] = []
    for head in range(heads):
        like = (2 * head + 1) * their_heads // (2 * heads)
        for level, count in enumerate(points, start=finer):
            known = level < len(their_points) and their_points[level] == count
            begin = like * per_head + begins[level] if known else 0
            rows += [begin + point if known else -1 for point in range(count)]
    return _by_coordinate(rows) if is_offset else rows


def _layout(attention: nn.Module) -> tuple[int, list[int]]:
    """Heads, and the points of each map."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    assert isinstance(heads, int)
    assert isinstance(levels, int)
    return heads, list(points) if isinstance(points, Sequence) else [points] * levels  # type: ignore[list-item]


def _by_coordinate(rows: Sequence[int]) -> list[int]:
    return [row if row < 0 else _AXES * row + axis for row in rows for axis in range(_AXES)]
