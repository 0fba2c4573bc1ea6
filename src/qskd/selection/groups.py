"""Group Query Selection (GQS): which queries of a DETR are worth imitating."""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Role(IntEnum):
    """What a query is to the objects of its image."""

    EASY_NEGATIVE = 0
    POSITIVE = 1
    HARD_NEGATIVE = 2


@dataclass(frozen=True, slots=True)
class QueryGroups:
    """Role, owner object and GIoU of every query of every layer and image."""

    role: Tensor  # [L, B, Q] uint8, values of Role
    owner: Tensor  # [L, B, Q] long, index of the object a query belongs to; -1 without objects
    giou: Tensor  # [L, B, Q] float32, GIoU with the owner, in [-1, 1]; -1 without objects
    match: Tensor  # [L, B, N] long, the query matched to each object; -1 where there is none
