"""What a teacher said of one image, and a batch's lesson put together again from several images.

A record holds the teacher's selected queries alone. Whatever a term prepares is made of these, and comes out the same
as from all queries. Letters: K selected queries of the layer that has most of them; the others are those of
``models/view.py``.

Every record has ``content`` [2], ``objects`` [N, 4], the boxes that queries were matched to, ``query``, ``role``,
``owner``, ``giou`` [L, K], ``boxes`` [L, K, 4], ``logits`` [L, K, C], for softmax heads ``no_object`` [L, K], and
``match`` [L, N], the query matched to each object. As terms need it, it has
``memory.<level>`` [D, h, w], and ``mass`` [L, S], the attention of the selected queries on each token relative to the
greatest of its layer and level, which is in ``peak`` [L, levels].
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qskd.losses.attention_guided_feature import query_weights
from qskd.losses.query_rows import listed
from qskd.models import host
from qskd.models.adapter import Need
from qskd.models.view import DetrView
from qskd.selection.groups import QueryGroups, Role
from qskd.teacher import Teaching

Record = dict[str, Tensor]

_TINY = 1e-12  # attention below this is none


@torch.no_grad()
def records_of(read: Teaching, content: Tensor, needs: Collection[Need], dtype: torch.dtype) -> list[Record]:
    """One record, on the CPU, for each image of a batch.

    Args:
        read: the teacher's view, with attention if that is needed, and its groups; of images without padding.
        content: [B, 2] long, (height, width) in pixels of what the teacher saw.
        needs: what else than predictions is kept.
        dtype: of logits, memory and attention; all else is exact.
    """
    view, groups, targets = read.lesson.view, read.lesson.groups, read.lesson.targets
    counts, objects = targets.counts, targets.boxes.cpu()
    is_selected = groups.role != Role.EASY_NEGATIVE
    most = is_selected.sum(-1).amax(0).tolist()  # K of each image
    queries = {name: tensor.cpu() for name, tensor in _queries(view, groups, is_selected, max(most), dtype).items()}
    features = {name: tensor.cpu() for name, tensor in _features(view, groups, needs, dtype).items()}
    return [
        {"content": content[image].int().cpu(), "objects": _own(objects[image, : counts[image]])}
        | {
            name: _own(tensor[:, image, : counts[image] if name == "match" else most[image]])
            for name, tensor in queries.items()
        }
        | {
            name: _own(tensor[image] if name.startswith("memory") else tensor[:, image])
            for name, tensor in features.items()
        }
        for image in range(view.num_images)
    ]


def bytes_of(record: Record) -> int:
    """What a record takes on the disk, but for the names."""
    return sum(tensor.numel() * tensor.element_size() for tensor in record.values())


def fields_read(fields: Iterable[str], needs: Collection[Need]) -> tuple[str, ...]:
    """Of a record's fields those that are read for terms with these needs; attention is put on the memory's grids."""
    has_memory, has_attention = Need.MEMORY in needs or Need.ATTENTION in needs, Need.ATTENTION in needs
    return tuple(
        field
        for field in fields
        if (has_memory or not field.startswith("memory.")) and (has_attention or field not in ("mass", "peak"))
    )


def _queries(view: DetrView, groups: QueryGroups, is_selected: Tensor, most: int, dtype: torch.dtype) -> Record:
    """[L, B, K, ...] of the selected queries, in the order of their indices."""
    query = listed(is_selected, most)  # [L, B, K]
    row = query.clamp(min=0)
    found = {
        "query": query.short(),
        "role": groups.role.gather(-1, row) * (query >= 0),
        "owner": groups.owner.gather(-1, row).short(),
        "giou": groups.giou.gather(-1, row),
        "boxes": view.boxes.gather(2, row[..., None].expand(-1, -1, -1, 4)),
        "logits": view.logits.gather(2, row[..., None].expand(-1, -1, -1, view.num_classes)).to(dtype),
        "match": groups.match.short(),
    }
    return found if view.no_object is None else found | {"no_object": view.no_object.gather(-1, row).to(dtype)}


def _features(view: DetrView, groups: QueryGroups, needs: Collection[Need], dtype: torch.dtype) -> Record:
    found: Record = {}
    if Need.MEMORY in needs:
        found |= {f"memory.{level}": memory.to(dtype) for level, memory in enumerate(view.memory)}
    if Need.ATTENTION in needs:
        sizes = [math.prod(memory.shape[-2:]) for memory in view.memory]
        levels = torch.split(view.attention_mass(query_weights(groups)), sizes, dim=-1)
        peak = torch.stack([level.amax(-1) for level in levels], dim=-1)  # [L, B, levels]
        relative = [level / peak[..., at, None].clamp(min=_TINY) for at, level in enumerate(levels)]
        found |= {"mass": torch.cat(relative, dim=-1).to(dtype), "peak": peak}
    return found


def _own(part: Tensor) -> Tensor:
    """A copy that keeps nothing else in memory, in the order of its axes."""
    return part.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, slots=True)
class RecordedMass:
    """An ``AttentionReader`` that knows one answer: of the selected queries, weighted by ``query_weights``."""

    mass: Tensor  # [L, B, S] float32
    weights: Tensor  # [L, B, Q], what it was recorded with

    def __call__(self, weights: Tensor, most: int | None = None) -> Tensor:
        """[L, B, S]."""
        if not host.waits_for(weights):
            assert torch.equal(weights, self.weights), "a term asks for attention of other weights than a cache keeps"
        return self.mass

    def to(self, device: torch.device) -> Self:
        """The same answer on a device; the weights stay, since nobody compares them there."""
        return type(self)(host.sent(self.mass, device), self.weights)


def assembled(
    records: Sequence[Record], strides: Sequence[int], num_queries: int
) -> tuple[DetrView, QueryGroups, Tensor]:
    """The teacher's view and groups of a batch, and the images' content [B, 2].

    Selected queries are where they were among all; of the others, which are easy negatives, everything is 0. Grids are
    as large as the largest of each level; what an image does not fill is padding.

    Args:
        records: one an image, at least one.
        strides: pixels a cell of each level; none where no memory was kept.
        num_queries: Q of the teacher.
    """
    groups = QueryGroups(
        role=_placed(records, "role", num_queries),
        owner=_placed(records, "owner", num_queries, -1).long(),
        giou=_placed(records, "giou", num_queries, -1),
        match=_matched(records),
        most=max(record["query"].shape[1] for record in records),
    )
    memory, is_padding = _memory(records, len(strides))
    view = DetrView(
        logits=_placed(records, "logits", num_queries),
        no_object=_placed(records, "no_object", num_queries) if "no_object" in records[0] else None,
        boxes=_placed(records, "boxes", num_queries),
        memory=memory,
        is_padding=is_padding,
        strides=tuple(strides),
        attention=RecordedMass(_mass(records, is_padding), query_weights(groups)) if "mass" in records[0] else None,
    )
    return view, groups, torch.stack([record["content"] for record in records]).long()


def _placed(records: Sequence[Record], name: str, num_queries: int, fill: float = 0) -> Tensor:
    """[L, B, Q, ...] from [L, K, ...] of each image."""
    first = records[0][name]
    whole = first.new_full((first.shape[0], len(records), num_queries + 1, *first.shape[2:]), fill)
    for image, record in enumerate(records):
        kept, query = record[name], record["query"].long()
        row = query.where(query >= 0, num_queries)  # what a layer has fewer of goes to a row that is cut off
        whole[:, image].scatter_(1, row.view(*row.shape, *(1,) * (kept.dim() - 2)).expand_as(kept), kept)
    return whole[:, :, :num_queries]


def _matched(records: Sequence[Record]) -> Tensor:
    """[L, B, N] long; -1 where an image has fewer objects."""
    objects = max(record["match"].shape[1] for record in records)
    whole = torch.full((len(records[0]["match"]), len(records), objects), -1)
    for image, record in enumerate(records):
        whole[:, image, : record["match"].shape[1]] = record["match"]
    return whole


def _memory(records: Sequence[Record], levels: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """[B, D, h, w] and [B, h, w] bool, True at padding, of every level."""
    memory, is_padding = [], []
    for level in range(levels):
        maps = [record[f"memory.{level}"] for record in records]
        height, width = (max(sides) for sides in zip(*(one.shape[-2:] for one in maps), strict=True))
        whole = maps[0].new_zeros(len(maps), maps[0].shape[0], height, width)
        mask = torch.ones(len(maps), height, width, dtype=torch.bool)
        for image, one in enumerate(maps):
            whole[image, :, : one.shape[1], : one.shape[2]] = one
            mask[image, : one.shape[1], : one.shape[2]] = False
        memory.append(whole)
        is_padding.append(mask)
    return tuple(memory), tuple(is_padding)


def _mass(records: Sequence[Record], is_padding: Sequence[Tensor]) -> Tensor:
    """[L, B, S] float32."""
    parts = [_levels_of_mass(record, len(is_padding)) for record in records]
    whole = []
    for level, mask in enumerate(is_padding):
        mass = torch.zeros(len(records[0]["peak"]), *mask.shape)  # [L, B, h, w]
        for image, levels in enumerate(parts):
            height, width = levels[level].shape[-2:]
            mass[:, image, :height, :width] = levels[level]
        whole.append(mass.flatten(2))
    return torch.cat(whole, dim=-1)


def _levels_of_mass(record: Mapping[str, Tensor], levels: int) -> list[Tensor]:
    """[L, h, w] float32 of every level."""
    grids = [record[f"memory.{level}"].shape[-2:] for level in range(levels)]
    split = torch.split(record["mass"].float(), [math.prod(grid) for grid in grids], dim=-1)
    return [
        (one * record["peak"][:, level, None]).view(-1, *grid)
        for level, (one, grid) in enumerate(zip(split, grids, strict=True))
    ]
