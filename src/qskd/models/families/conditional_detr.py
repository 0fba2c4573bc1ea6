"""Conditional DETR (Meng et al. 2021, "Conditional DETR for Fast Training Convergence")."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from qskd.models.adapter import MatchCosts
from qskd.models.attention_dense import CrossAttention
from qskd.models.families.single_scale import Outputs, SingleScaleAdapter, add_positions, logit


class ConditionalDetrAdapter(SingleScaleAdapter):
    """Reads ``ConditionalDetrForObjectDetection``: sigmoid head, centres relative to one reference point."""

    family: ClassVar[str] = "conditional_detr"

    @property
    def match_costs(self) -> MatchCosts:
        """Focal cost, L1 and GIoU, weighted as configured; the matcher's alpha and gamma are fixed."""
        config = self.model.config
        return MatchCosts("focal", config.class_cost, config.bbox_cost, config.giou_cost)

    @property
    def _references(self) -> list[nn.Module]:
        return [self.model.model.decoder.ref_point_head]

    def _classes(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model.class_labels_classifier(states), None

    def _boxes(self, states: Tensor, outputs: Any) -> Tensor:
        centres = logit(outputs.reference_points).transpose(0, 1)  # [B, Q, 2], the same in all layers
        return (self._offsets(states) + F.pad(centres, (0, 2))).sigmoid()

    def _projections(self, layer: Any) -> list[nn.Module]:
        attention = layer.encoder_attn
        modules = [
            attention.q_content_proj,
            attention.q_pos_sine_proj,
            attention.q_pos_proj,  # only the first layer has one
            attention.k_content_proj,
            attention.k_pos_proj,
        ]
        return [module for module in modules if module is not None]

    def _cross_attention(self, layer: Any, seen: Outputs) -> CrossAttention:
        attention = layer.encoder_attn
        key_positions = seen[attention.k_pos_proj]
        adds = attention.q_pos_proj is not None
        return CrossAttention(
            queries=(
                add_positions(seen[attention.q_content_proj], seen[attention.q_pos_proj] if adds else None),
                seen[attention.q_pos_sine_proj],
            ),
            keys=(
                add_positions(seen[attention.k_content_proj], key_positions if adds else None),
                key_positions,
            ),
            num_heads=self.model.config.decoder_attention_heads,
            scaling=attention.scaling,
        )
