"""D-FINE (Peng et al. 2024): RT-DETR with boxes as distributions, and its own distillation between layers."""

from typing import Any, ClassVar

from transformers.loss.loss_d_fine import DFineLoss

from qskd.models.families.fine_grained import FineGrainedAdapter


class DFineAdapter(FineGrainedAdapter):
    """Reads ``DFineForObjectDetection``."""

    family: ClassVar[str] = "d_fine"

    def _criterion(self) -> Any:
        return DFineLoss(self._config)
