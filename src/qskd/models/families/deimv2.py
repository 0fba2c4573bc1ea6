"""DEIMv2 (Huang et al. 2025): D-FINE on DINOv3 or HGNetV2 features, trained with matching-aware loss."""

from typing import Any, ClassVar

from transformers.loss.loss_deimv2 import Deimv2Loss

from qskd.models.families.fine_grained import FineGrainedAdapter


class Deimv2Adapter(FineGrainedAdapter):
    """Reads ``Deimv2ForObjectDetection``."""

    family: ClassVar[str] = "deimv2"

    def _criterion(self) -> Any:
        return Deimv2Loss(self._config)
