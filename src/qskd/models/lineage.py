"""Which part of one model is the same as which of another of its family: layers, maps, queries, heads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qskd.models.classes import class_rows, is_class_layer
from qskd.models.initialising import BACKBONE

QUERY_NAMES = r"query_position_embeddings|query_refpoint_embeddings|weight_embedding|reference_point_embed|query_feat"
_QUERIES = re.compile(rf"({QUERY_NAMES})$")
_DECODER_LAYER = re.compile(r"\b(decoder\.layers|class_embed|bbox_embed|lqe_layers)\.(\d+)(?=\.|$)")
_FROM_FINE = re.compile(r"\b((?:encoder_|decoder_)?input_proj|downsample_convs|pan_blocks|scale_layers)\.(\d+)(?=\.|$)")
_FROM_COARSE = re.compile(
    r"\b(lateral_convs|fpn_blocks)\.(\d+)(?=\.|$)"
)  # modules of one map, by where counting begins
_ENCODER_LAYER = re.compile(r"(encoder(?:\.aifi\.\d+)?\.layers)\.(\d+)(?=\.|$)")
_MIXED_MAP = re.compile(r"\b(encoder\.aifi)\.(\d+)(?=\.|$)")
_BOX_HEAD = re.compile(r"\bbbox_embed\.(\d+)(?=\.|$)")
_BINS = re.compile(r"\bbbox_embed\.\d+\.layers\.(?P<layer>\d+)$")
_DISTRIBUTION = ("max_num_bins", "reg_scale", "up")  # what the rows of D-FINE's box heads mean
_STEP = re.compile(r"\b(decoder\.layers|bbox_embed)\.(\d+)(?=\.|$)")  # of a box's refinement
_LEVELS = "level_embed"
NOWHERE = 99  # added to the number of a module, leads to none


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of a model, with what surrounds it."""

    name: str
    modules: Mapping[str, nn.Module]  # of the whole model, by name
    config: Any  # of the model

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.modules[self.name]

    @property
    def holder(self) -> nn.Module:
        """The module that holds it."""
        return self.modules[holder(self.name)]


def holder(name: str) -> str:
    """The name of the module that holds the one of this name; the model's own is empty."""
    return name.rpartition(".")[0]


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
    query_groups: tuple[int, int] = (1, 1)  # equal parts of the target's and the source's learned queries
    finer: int = 0  # how many maps the source has that are finer than the target's
    coarser: int = 0  # how many that are coarser
    mixed_maps: tuple[int, ...] | None = None  # the source's place of each map that attention mixes; None: the same
    together: int = 1  # neighbouring channels that stay neighbours

    def source_name(self, name: str) -> str:
        """The name, in the source, of a module of the target."""
        if BACKBONE.search(f"{name}."):
            return name
        name = _FROM_FINE.sub(lambda match: f"{match[1]}.{int(match[2]) + self.finer}", name)
        name = _FROM_COARSE.sub(lambda match: f"{match[1]}.{int(match[2]) + self.coarser}", name)
        name = _DECODER_LAYER.sub(lambda match: f"{match[1]}.{self._decoder_layer(int(match[2]))}", name)
        if self.mixed_maps is not None:
            places = self.mixed_maps
            name = _MIXED_MAP.sub(lambda match: f"{match[1]}.{places[int(match[2])]}", name)
        return _ENCODER_LAYER.sub(lambda match: f"{match[1]}.{self.encoder[int(match[2])]}", name)

    def _decoder_layer(self, layer: int) -> int:
        if layer < len(self.decoder):
            return self.decoder[layer]
        return self.source_decoder_layers + layer - len(self.decoder)  # a two-stage model's proposal head

    def origin(self, target: Layer, source: Mapping[str, nn.Module], config: Any) -> Layer | None:
        """The source's module that one of the target's begins as; None where there is none.

        Args:
            target: the module.
            source: the source's modules by name.
            config: the source's.
        """
        name = target.name
        if not self.backbone and BACKBONE.search(f"{name}."):
            return None
        if _says_bins(target) and any(_fact(target.config, fact) != _fact(config, fact) for fact in _DISTRIBUTION):
            return None
        names = [self.source_name(name)]
        if "decoder.layers.0." in f"{name}.":  # what the first layer alone has comes from the first
            names.append(name)
        origin = next((Layer(one, source, config) for one in names if one in source), None)
        return same_meaning(target, origin) if origin is not None and _BOX_HEAD.search(name) else origin

    def chosen_rows(self, name: str, key: str, target: Tensor, source: Tensor) -> Sequence[int] | None:
        """The source row of each row of a tensor whose rows are classes, queries or maps; None for channels."""
        if is_class_layer(name):
            return class_rows(len(target), self.rows, self.source_classes)
        if _QUERIES.search(name):
            return _query_rows(len(target), len(source), self.query_groups)
        if key == _LEVELS:
            return [level if level < len(source) else -1 for level in range(self.finer, self.finer + len(target))]
        return None


def same_meaning(target: Layer, origin: Layer) -> Layer | None:
    """The source's layer that says the same as the target's of what it changes a box by; None where there is none.

    Around a point, offsets are in cells of a map, and box heads say the whole box. Around a box, offsets are in shares
    of it, and heads say how it changes. A refining Deformable DETR starts with points and goes on with boxes: its first
    layer begins as the first, whichever the others begin as.
    """
    wanted = _is_from_box(target)
    first = Layer(_STEP.sub(r"\1.0", origin.name), origin.modules, origin.config)
    return next((one for one in (origin, first) if _is_from_box(one) == wanted), None)


def _is_from_box(layer: Layer) -> bool:
    step = _STEP.search(layer.name)
    if step is None or layer.config.model_type != "deformable_detr":
        return step is not None
    return bool(layer.config.two_stage or (layer.config.with_box_refine and int(step[2]) > 0))


def _says_bins(layer: Layer) -> bool:
    """Whether it is the last layer of a D-FINE's or DEIMv2's box head, whose rows are bins of distances."""
    found = _BINS.search(layer.name)
    if found is None or not hasattr(layer.config, "max_num_bins"):
        return False
    return f"{holder(layer.name)}.{int(found['layer']) + 1}" not in layer.modules


def _fact(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _query_rows(target: int, source: int, groups: tuple[int, int]) -> list[int]:
    """The source row of each query: of every group the first ones, -1 where the source has no more."""
    mine, theirs = target // groups[0], source // groups[1]
    return [
        group * theirs + query if group < groups[1] and query < theirs else -1
        for group in range(groups[0])
        for query in range(mine)
    ]


def mixed_maps(target: Any, source: Any, finer: int) -> tuple[int, ...] | None:
    """The source's place of each map that a hybrid encoder's attention mixes, by the map; ``NOWHERE`` for none."""
    mine, theirs = (_fact(config, "encode_proj_layers") for config in (target, source))
    if mine is None or theirs is None:
        return None
    places = {level: place for place, level in enumerate(theirs)}
    return tuple(places.get(level + finer, NOWHERE) for level in mine)
