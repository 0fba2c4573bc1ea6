"""RF-DETR (Robinson et al. 2025): LW-DETR on a DINOv2 backbone with windows, one map."""

from typing import ClassVar

from qskd.data.batch import Batch
from qskd.errors import DataError
from qskd.models.families.group_queries import GroupQueriesAdapter


class RfDetrAdapter(GroupQueriesAdapter):
    """Reads ``RfDetrForObjectDetection``."""

    family: ClassVar[str] = "rf_detr"

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of the one map: a patch."""
        return (self._patch,)

    @property
    def size_multiple(self) -> int:
        """Patches are cut into windows, equally many along both sides."""
        return self._patch * int(self._config.backbone_config.num_windows)

    @property
    def _patch(self) -> int:
        return int(self._config.backbone_config.patch_size)

    def _check_size(self, batch: Batch) -> None:
        super()._check_size(batch)
        height, width = batch.pixels.shape[-2:]
        if height != width and self._config.backbone_config.num_windows > 1:
            raise DataError(
                f"rf_detr was given images of {height}x{width} pixels, but its backbone takes apart the windows of "
                "square images alone (it mixes up rows and columns of others). Choose one square image size."
            )
