"""DAB-DETR (Liu et al. 2022, "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR")."""

from typing import Any, ClassVar

from torch import Tensor, nn

from qskd.models.adapter import MatchCosts
from qskd.models.attention_dense import CrossAttention
from qskd.models.families.single_scale import Outputs, SingleScaleAdapter, add_positions, logit


class DabDetrAdapter(SingleScaleAdapter):
    """Reads ``DabDetrForObjectDetection``: sigmoid head, boxes relative to each layer's own anchors."""

    family: ClassVar[str] = "dab-detr"

    @property
    def match_costs(self) -> MatchCosts:
        """Focal cost, L1 and GIoU, weighted as configured; the matcher's alpha and gamma are fixed."""
        config = self.model.config
        return MatchCosts("focal", config.class_cost, config.bbox_cost, config.giou_cost)

    @property
    def _backbone(self) -> nn.Module:
        return self.model.model.backbone.conv_encoder

    def _states(self, outputs: Any, seen: Outputs) -> Tensor:
        return outputs.intermediate_hidden_states

    @property
    def _references(self) -> list[nn.Module]:
        return [self.model.model.decoder.bbox_embed]

    def _classes(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model.class_embed(states), None

    def _boxes(self, states: Tensor, outputs: Any) -> Tensor:
        anchors = logit(outputs.reference_points)  # [L, B, Q, 4], what each layer refines
        return (self._offsets(states) + anchors).sigmoid()

    def _projections(self, layer: Any) -> list[nn.Module]:
        attention = layer.cross_attn
        modules = [
            attention.cross_attn_query_content_proj,
            attention.cross_attn_query_pos_sine_proj,
            attention.cross_attn_query_pos_proj,  # the first layer, or all with config.keep_query_pos
            attention.cross_attn_key_content_proj,
            attention.cross_attn_key_pos_proj,
        ]
        return [module for module in modules if module is not None]

    def _cross_attention(self, layer: Any, seen: Outputs) -> CrossAttention:
        attention = layer.cross_attn
        positions = attention.cross_attn_query_pos_proj
        key_positions = seen[attention.cross_attn_key_pos_proj]
        adds = positions is not None
        return CrossAttention(
            queries=(
                add_positions(seen[attention.cross_attn_query_content_proj], seen[positions] if adds else None),
                seen[attention.cross_attn_query_pos_sine_proj],
            ),
            keys=(
                add_positions(seen[attention.cross_attn_key_content_proj], key_positions if adds else None),
                key_positions,
            ),
            num_heads=self.model.config.decoder_attention_heads,
            scaling=attention.cross_attn.scaling,
        )
