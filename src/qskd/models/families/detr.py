"""DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers")."""

from typing import Any, ClassVar

from torch import Tensor, nn

from qskd.models.adapter import MatchCosts
from qskd.models.attention_dense import CrossAttention
from qskd.models.families.single_scale import Outputs, SingleScaleAdapter


class DetrOriginalAdapter(SingleScaleAdapter):
    """Reads ``DetrForObjectDetection``: softmax head with a no-object column."""

    family: ClassVar[str] = "detr"

    @property
    def match_costs(self) -> MatchCosts:
        """Softmax probability, L1 and GIoU, weighted as configured."""
        config = self.model.config
        return MatchCosts("softmax", config.class_cost, config.bbox_cost, config.giou_cost)

    def _classes(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = self.model.class_labels_classifier(states)  # [L, B, Q, C + 1], no-object last
        return logits[..., :-1], logits[..., -1]

    def _boxes(self, states: Tensor, outputs: Any) -> Tensor:
        return self._offsets(states).sigmoid()

    def _projections(self, layer: Any) -> list[nn.Module]:
        return [layer.encoder_attn.q_proj, layer.encoder_attn.k_proj]

    def _cross_attention(self, layer: Any, seen: Outputs) -> CrossAttention:
        attention = layer.encoder_attn
        return CrossAttention(
            queries=(seen[attention.q_proj],),
            keys=(seen[attention.k_proj],),
            num_heads=self.model.config.decoder_attention_heads,
            scaling=attention.scaling,
        )
