"""One adapter a family; a new family is one file here and one line below."""

from importlib import import_module

from qskd.errors import UnsupportedFamily
from qskd.models.adapter import DetrAdapter

FAMILIES: dict[str, str] = {
    "conditional_detr": "conditional_detr:ConditionalDetrAdapter",
    "dab-detr": "dab_detr:DabDetrAdapter",
    "deformable_detr": "deformable_detr:DeformableDetrAdapter",
    "detr": "detr:DetrOriginalAdapter",
    "rt_detr": "rt_detr:RTDetrAdapter",
}
"""``config.model_type`` to ``module:class``, imported only when asked for."""


def adapter_class(model_type: str) -> type[DetrAdapter]:
    """The adapter of a family.

    Raises:
        UnsupportedFamily: no adapter reads ``model_type``; the message lists those that exist.
    """
    if model_type not in FAMILIES:
        raise UnsupportedFamily(
            f"No adapter reads models of type '{model_type}'. Supported: {', '.join(sorted(FAMILIES))}."
        )
    module, name = FAMILIES[model_type].split(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
