"""RT-DETRv2 (Lv et al. 2024): RT-DETR whose attention may sample whole cells, and scales its offsets."""

from typing import ClassVar

from qskd.models.families.rt_detr import RTDetrAdapter


class RTDetrV2Adapter(RTDetrAdapter):
    """Reads ``RTDetrV2ForObjectDetection``, which differs from RT-DETR inside the attention alone."""

    family: ClassVar[str] = "rt_detr_v2"
