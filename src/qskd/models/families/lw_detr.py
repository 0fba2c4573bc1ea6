"""LW-DETR (Chen et al. 2024): a ViT with windows, maps of one or two scales, a decoder of few layers."""

from typing import ClassVar

from qskd.errors import ConfigError
from qskd.models.families.group_queries import GroupQueriesAdapter


class LwDetrAdapter(GroupQueriesAdapter):
    """Reads ``LwDetrForObjectDetection``."""

    family: ClassVar[str] = "lw_detr"

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each map: a patch, magnified or reduced by the projector.

        Raises:
            ConfigError: the projector makes no map.
        """
        factors = self._config.projector_scale_factors
        if not factors:
            raise ConfigError(
                "This lw_detr has no projector_scale_factors, so its decoder has nothing to look at. Set them in its "
                "configuration: [1.0] as the smaller checkpoints have, or [2.0, 0.5]."
            )
        return tuple(round(self._patch / scale) for scale in factors)

    @property
    def size_multiple(self) -> int:
        """Patches are cut into windows, equally many along both sides."""
        return self._patch * int(self._config.backbone_config.num_windows_side)

    @property
    def _patch(self) -> int:
        return int(self._config.backbone_config.patch_size)
