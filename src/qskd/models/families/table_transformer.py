"""Table Transformer (Smock et al. 2022): DETR that normalises before each block instead of after it."""

from typing import Any, ClassVar

from torch import Tensor

from qskd.models.families.detr import DetrOriginalAdapter


class TableTransformerAdapter(DetrOriginalAdapter):
    """Reads ``TableTransformerForObjectDetection``."""

    family: ClassVar[str] = "table-transformer"

    def _coarsest(self, output: Any) -> tuple[Tensor, Tensor]:
        features, _positions = output
        return features[-1]

    def _state(self, output: Any) -> Tensor:
        return output[0]
