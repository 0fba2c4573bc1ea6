"""Weights handed down from one model of a family to another, and the report of what arrived."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qskd.models.channels import evenly_spaced, with_channels
from qskd.models.classes import copy_rows
from qskd.models.inheriting_points import copy_points
from qskd.models.initialising import BACKBONE
from qskd.models.lineage import QUERY_NAMES, Layer, Lineage, holder

_CONSTANTS = {"reg_scale", "up"}  # D-FINE's, parameters that are none
_BY_POINT = re.compile(r"(sampling_offsets|attention_weights)$")  # rows by head, level and point: no channels
_ROTATED = re.compile(r"\bbackbone\..*\battention\.[qkvo]_proj$")  # of a DINOv3
_BY_HEAD = "relative_position_bias_table"  # of a Swin: a column a head
_KERNEL = 4  # axes of a convolution's weight

_GROUPS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("backbone", BACKBONE),
    ("class heads", re.compile(r"class_embed|class_labels_classifier|enc_score_head|lqe_layers")),
    ("box heads", re.compile(r"bbox_embed|bbox_predictor|bbox_head")),
    ("queries", re.compile(rf"{QUERY_NAMES}|patterns")),
    ("encoder", re.compile(r"\bencoder\.")),
    ("decoder", re.compile(r"\bdecoder\.")),
    ("projections", re.compile(r"")),
)


@dataclass(frozen=True, slots=True)
class InheritedGroup:
    """Numbers of one part of a model."""

    name: str
    inherited: int  # weights, normalisation statistics included, that came from the other model
    total: int  # weights the part has


@dataclass(frozen=True, slots=True)
class InheritReport:
    """What a model took over from another."""

    groups: tuple[InheritedGroup, ...]
    notes: tuple[str, ...] = ()  # sentences for the reader: layers, classes, warnings

    @property
    def inherited(self) -> int:
        """Weights taken over, of the whole model."""
        return sum(group.inherited for group in self.groups)

    @property
    def total(self) -> int:
        """Weights of the whole model."""
        return sum(group.total for group in self.groups)

    def as_table(self) -> str:
        """One line per part of the model, the sum, and the notes."""
        rows = [*self.groups, InheritedGroup("all", self.inherited, self.total)]
        lines = [f"{'part':<12} {'inherited':>12} {'weights':>12}"]
        lines += [
            f"{row.name:<12} {row.inherited:>12,} {row.total:>12,}  {_share(row.inherited, row.total)}" for row in rows
        ]
        return "\n".join([*lines, *self.notes])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:5.1f} %" if whole else ""


@torch.no_grad()
def inherit_weights(target: nn.Module, source: nn.Module, lineage: Lineage) -> InheritReport:
    """Copy what agrees in name; class layers by class name, queries from the first on.

    A module is copied whole or not at all (a bias without its weight is worth nothing). A module that only
    the first decoder layer has, as in Conditional and DAB DETR, comes from the source's first. A module that is
    narrower than the source's takes evenly spaced channels of it, or pairs of them where the family's positions are
    sine by cosine. Evenly spaced channels of two maps side by side are those of each map, where both shrink by the same
    factor; necks whose maps do not are seen to map by map.

    Args:
        target: changed in place.
        source: of the same family.
        lineage: which layer, row and part comes from which.

    Source: Xu et al. 2024, "Initializing Models with Larger Ones" (arXiv 2311.18823), for the channels: its uniform
    selection.
    """
    mine, theirs = (dict(model.named_modules(remove_duplicate=False)) for model in (target, source))
    configs = [getattr(model, "config", None) for model in (target, source)]
    taken: dict[int, int] = {}  # weights copied, by the address of the target's tensor
    for name in mine:
        layer = Layer(name, mine, configs[0])
        origin = lineage.origin(layer, theirs, configs[1])
        if origin is None:
            continue
        if _BY_POINT.search(name):
            copied = copy_points(layer, origin, lineage.finer, lineage.together)
        else:
            copied = _copy_module(layer, origin, lineage)
        for tensor, count in copied:
            taken[tensor.data_ptr()] = count
    return InheritReport(_count(target, taken))


def nothing_inherited(model: nn.Module) -> InheritReport:
    """The report of a model that is all its own."""
    return InheritReport(_count(model, {}))


def _copy_module(layer: Layer, origin: Layer, lineage: Lineage) -> list[tuple[Tensor, int]]:
    own, theirs = _own_state(layer.module), _own_state(origin.module)
    if own.keys() != theirs.keys():
        return []
    comparable = _comparable(own, layer.module)
    copied = [(own[key], own[key].numel()) for key in own.keys() - comparable if torch.equal(own[key], theirs[key])]
    if not comparable:
        return copied
    pairs = [(own[key], theirs[key]) for key in comparable]
    rows = lineage.chosen_rows(layer.name, comparable[0], *pairs[0])
    together = 1 if _BY_HEAD in own else lineage.together
    pairs = _selected(pairs, rows is not None, layer, origin, together)
    return copied + (_copied(pairs) if rows is None else copy_rows(pairs, rows))


def _copied(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, int]]:
    """Every target with the number of its elements, all copied; nothing where shapes differ."""
    if any(mine.shape != other.shape for mine, other in pairs):
        return []
    for mine, other in pairs:
        mine.copy_(other)
    return [(mine, mine.numel()) for mine, _ in pairs]


def _comparable(own: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """What of a module means the same in both models: no constants, no buffers that describe the model's own shape."""
    if "running_mean" in own:
        return list(own)
    return [key for key in own if key in module._parameters and key not in _CONSTANTS]


def _selected(
    pairs: list[tuple[Tensor, Tensor]], by_row: bool, layer: Layer, origin: Layer, together: int
) -> list[tuple[Tensor, Tensor]]:
    """The source's tensors with as many channels as the target's, evenly spaced; as they are where that cannot be.

    Args:
        pairs: (target, source) tensors.
        by_row: whether rows are no channels.
        layer: the target's.
        origin: the source's.
        together: neighbouring channels that stay neighbours.
    """
    if any(mine.dim() != other.dim() or not _fits(mine.shape[by_row:], other.shape[by_row:]) for mine, other in pairs):
        return pairs
    if pairs[0][0].dim() == _KERNEL and _joins(origin):
        return [(mine, _with_joined_channels(other, mine.shape)) for mine, other in pairs]
    if _ROTATED.search(layer.name):
        return _with_heads(pairs, layer, origin)
    return [(mine, with_channels(other, mine.shape, by_row, together)) for mine, other in pairs]


def _joins(layer: Layer) -> bool:
    """Whether it may be a layer of a block of D-FINE's or DEIMv2's neck, into which four maps go."""
    return "csp_rep1" in layer.modules[holder(holder(layer.name))]._modules


def _with_heads(pairs: list[tuple[Tensor, Tensor]], layer: Layer, origin: Layer) -> list[tuple[Tensor, Tensor]]:
    """Evenly spaced channels, along heads evenly spaced heads and of them evenly spaced channels.

    A head's channels are turned in twos by the position, by angles that its width decides.
    """
    is_out = layer.name.endswith("o_proj")
    axis = 1 if is_out else 0  # of the weight
    wide, narrow = pairs[0][1].shape[axis], pairs[0][0].shape[axis]
    heads, theirs = (getattr(one.holder, "num_heads", 1) for one in (layer, origin))
    width, other_width = narrow // heads, wide // theirs
    if heads > theirs or width > other_width:
        return []
    places = (evenly_spaced(heads, theirs)[:, None] * other_width + evenly_spaced(width, other_width)).flatten()
    chosen = []
    for mine, other in pairs:
        if is_out and mine.dim() == 1:
            chosen.append((mine, with_channels(other, mine.shape, 0)))
            continue
        rest = torch.Size([*mine.shape[:axis], wide, *mine.shape[axis + 1 :]])
        chosen.append((mine, with_channels(other, rest, 0).index_select(axis, places.to(other.device))))
    return chosen


def _fits(mine: torch.Size, theirs: torch.Size) -> bool:
    """Whether channels are no more, and kernels, or the places of embeddings, the same."""
    fixed = slice(0, 2) if len(mine) == 3 else slice(2, None)
    return mine[fixed] == theirs[fixed] and all(ours <= other for ours, other in zip(mine, theirs, strict=True))


def _with_joined_channels(kernel: Tensor, shape: torch.Size) -> Tensor:
    """[out, in, 1, 1] with evenly spaced channels of each map that comes in; as it is where one of them is wider.

    Two halves of twice as many channels as go out lie before two other maps, which shrink by another factor.
    """
    split, theirs = 2 * shape[0], 2 * kernel.shape[0]
    if shape[1] <= split:  # the others of the block, of one map
        return with_channels(kernel, shape, 0)
    if shape[1] - split > kernel.shape[1] - theirs:
        return kernel
    first = evenly_spaced(split, theirs)
    rest = theirs + evenly_spaced(shape[1] - split, kernel.shape[1] - theirs)
    rows = kernel.index_select(0, evenly_spaced(shape[0], kernel.shape[0]).to(kernel.device))
    return rows.index_select(1, torch.cat([first, rest]).to(kernel.device))


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers of a module itself, batch counters left out (frozen norms have none)."""
    tensors = {**module._parameters, **module._buffers}
    left_out = module._non_persistent_buffers_set | {"num_batches_tracked"}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None and key not in left_out}


def _count(model: nn.Module, taken: Mapping[int, int]) -> tuple[InheritedGroup, ...]:
    inherited: dict[str, int] = {name: 0 for name, _ in _GROUPS}
    total = dict(inherited)
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen or name.endswith("num_batches_tracked"):
            continue
        seen.add(tensor.data_ptr())
        group = next(group for group, pattern in _GROUPS if pattern.search(name))
        total[group] += tensor.numel()
        inherited[group] += taken.get(tensor.data_ptr(), 0)
    return tuple(InheritedGroup(name, inherited[name], total[name]) for name, _ in _GROUPS if total[name])
