"""Weights handed down from one model of a family to another, and the report of what arrived."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qskd.models.channels import evenly_spaced, with_channels
from qskd.models.classes import class_rows, copy_rows, is_class_layer
from qskd.models.inheriting_points import copy_points, holder
from qskd.models.initialising import BACKBONE

_QUERY_NAMES = r"query_position_embeddings|query_refpoint_embeddings|weight_embedding|reference_point_embed|query_feat"
_QUERIES = re.compile(rf"({_QUERY_NAMES})$")
_DECODER_LAYER = re.compile(r"\b(decoder\.layers|class_embed|bbox_embed|lqe_layers)\.(\d+)(?=\.|$)")
_FROM_FINE = re.compile(r"\b((?:encoder_|decoder_)?input_proj|downsample_convs|pan_blocks|scale_layers)\.(\d+)(?=\.|$)")
_FROM_COARSE = re.compile(
    r"\b(lateral_convs|fpn_blocks)\.(\d+)(?=\.|$)"
)  # modules of one map, by where counting begins
_CONSTANTS = {"reg_scale", "up"}  # D-FINE's, parameters that are none
_BY_POINT = re.compile(r"(sampling_offsets|attention_weights)$")  # rows by head, level and point: no channels
_KERNEL = 4  # axes of a convolution's weight
_ENCODER_LAYER = re.compile(r"(encoder(?:\.aifi\.\d+)?\.layers)\.(\d+)(?=\.|$)")

_GROUPS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("backbone", BACKBONE),
    ("class heads", re.compile(r"class_embed|class_labels_classifier|enc_score_head|lqe_layers")),
    ("box heads", re.compile(r"bbox_embed|bbox_predictor|bbox_head")),
    ("queries", re.compile(rf"{_QUERY_NAMES}|patterns")),
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


def layer_choice(target_layers: int, source_layers: int) -> tuple[int, ...]:
    """The source layer each target layer starts from: evenly spaced, the last from the last.

    Six layers to three: 1, 3 and 5, counted from 0. A target with more layers than the source repeats some.
    """
    return tuple(max(round((layer + 1) * source_layers / target_layers) - 1, 0) for layer in range(target_layers))


@dataclass(frozen=True, slots=True)
class Lineage:
    """How the parts of the target correspond to those of the source."""

    encoder: tuple[int, ...]  # source layer of each target layer
    decoder: tuple[int, ...]
    source_decoder_layers: int
    rows: tuple[int, ...]  # source row of every target class, the extra row of a head not counted; -1: none
    source_classes: int
    backbone: bool = True  # whether the backbones have the same architecture
    query_groups: int = 1  # equal parts of the learned queries, each with a first one; 0: as many as it has not
    finer: int = 0  # how many maps the source has that are finer than the target's
    coarser: int = 0  # how many that are coarser
    same_maps: bool = True  # whether both see maps of the same strides
    together: int = 1  # neighbouring channels that stay neighbours

    def source_name(self, name: str) -> str:
        """The name, in the source, of a module of the target."""
        if BACKBONE.search(f"{name}."):
            return name
        name = _FROM_FINE.sub(lambda match: f"{match[1]}.{int(match[2]) + self.finer}", name)
        name = _FROM_COARSE.sub(lambda match: f"{match[1]}.{int(match[2]) + self.coarser}", name)
        name = _DECODER_LAYER.sub(lambda match: f"{match[1]}.{self._decoder_layer(int(match[2]))}", name)
        return _ENCODER_LAYER.sub(lambda match: f"{match[1]}.{self.encoder[int(match[2])]}", name)

    def _decoder_layer(self, layer: int) -> int:
        if layer < len(self.decoder):
            return self.decoder[layer]
        return self.source_decoder_layers + layer - len(self.decoder)  # a two-stage model's proposal head


@torch.no_grad()
def inherit_weights(target: nn.Module, source: nn.Module, lineage: Lineage) -> InheritReport:
    """Copy what agrees in name; class layers by class name, queries from the first on.

    A module is copied whole or not at all (a bias without its weight is worth nothing). A module that only
    the first decoder layer has, as in Conditional and DAB DETR, comes from the source's first. A module that is
    narrower than the source's takes evenly spaced channels of it, or pairs of them where the family's positions are
    sine by cosine. Evenly spaced channels of two maps side by side are
    those of each map, where both shrink by the same factor; necks whose maps do not are seen to map by map.

    Args:
        target: changed in place.
        source: of the same family.
        lineage: which layer, row and part comes from which.

    Source: Xu et al. 2024, "Initializing Models with Larger Ones" (arXiv 2311.18823), for the channels: its uniform
    selection.
    """
    mine, theirs = (dict(model.named_modules(remove_duplicate=False)) for model in (target, source))
    taken: dict[int, int] = {}  # weights copied, by the address of the target's tensor
    for name, module in mine.items():
        origin = _origin(name, theirs, lineage)
        if origin is None:
            continue
        if _BY_POINT.search(name):
            copied = copy_points((name, mine, target), (origin, theirs, source), lineage.finer, lineage.together)
        else:
            joins = "csp_rep1" in theirs[holder(holder(origin))]._modules  # D-FINE's and DEIMv2's necks
            copied = _copy_module(name, module, theirs[origin], lineage, joins)
        for tensor, count in copied:
            taken[tensor.data_ptr()] = count
    return InheritReport(_count(target, taken))


def nothing_inherited(model: nn.Module) -> InheritReport:
    """The report of a model that is all its own."""
    return InheritReport(_count(model, {}))


def _origin(name: str, source: Mapping[str, nn.Module], lineage: Lineage) -> str | None:
    """The name of the source's module that one of the target's begins as."""
    if not lineage.backbone and BACKBONE.search(f"{name}."):
        return None
    names = [lineage.source_name(name), *([name] if lineage.same_maps else [])]
    return next((one for one in names if one in source), None)


def _copy_module(
    name: str, module: nn.Module, origin: nn.Module, lineage: Lineage, joins: bool
) -> list[tuple[Tensor, int]]:
    own, theirs = _own_state(module), _own_state(origin)
    if own.keys() != theirs.keys():
        return []
    comparable = _comparable(module, own, lineage)
    pairs = _selected(name, [(own[key], theirs[key]) for key in comparable], joins, lineage.together)
    equal = [(own[key], own[key].numel()) for key in own.keys() - comparable if torch.equal(own[key], theirs[key])]
    return equal + _copy_pairs(name, pairs, lineage)


def _copy_pairs(name: str, pairs: list[tuple[Tensor, Tensor]], lineage: Lineage) -> list[tuple[Tensor, int]]:
    if not pairs:
        return []
    if is_class_layer(name):
        return copy_rows(pairs, class_rows(len(pairs[0][0]), lineage.rows, lineage.source_classes))
    if _QUERIES.search(name):
        if lineage.query_groups == 0:
            return []
        return copy_rows(pairs, _query_rows(len(pairs[0][0]), len(pairs[0][1]), lineage.query_groups))
    if any(mine.shape != other.shape for mine, other in pairs):
        return []
    for mine, other in pairs:
        mine.copy_(other)
    return [(mine, mine.numel()) for mine, _ in pairs]


def _comparable(module: nn.Module, own: Mapping[str, Tensor], lineage: Lineage) -> list[str]:
    """What of a module means the same in both models: no constants, nothing by map where maps differ."""
    left_out = set() if lineage.same_maps else {"level_embed"}
    if "running_mean" not in own:  # else buffers describe the model's own shape
        left_out |= own.keys() - module._parameters.keys() | _CONSTANTS
    return [key for key in own if key not in left_out]


def _selected(name: str, pairs: list[tuple[Tensor, Tensor]], joins: bool, together: int) -> list[tuple[Tensor, Tensor]]:
    """The source's tensors with as many channels as the target's, evenly spaced; as they are where that cannot be."""
    by_row = is_class_layer(name) or bool(_QUERIES.search(name))  # rows are chosen by class name and by place
    if any(mine.dim() != other.dim() or not _fits(mine.shape[by_row:], other.shape[by_row:]) for mine, other in pairs):
        return pairs
    if joins and pairs and pairs[0][0].dim() == _KERNEL:
        return [(mine, _with_joined_channels(other, mine.shape)) for mine, other in pairs]
    return [(mine, with_channels(other, mine.shape, by_row, together)) for mine, other in pairs]


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


def _query_rows(target: int, source: int, groups: int) -> list[int]:
    """The source row of each query: of every group the first ones, -1 where the source has no more."""
    mine, theirs = target // groups, source // groups
    return [group * theirs + query if query < theirs else -1 for group in range(groups) for query in range(mine)]


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
