"""One adapter a family; a new family is one file here and one line below."""

from importlib import import_module

from qskd.errors import UnsupportedFamily
from qskd.models.adapter import DetrAdapter

FAMILIES: dict[str, str] = {
    "conditional_detr": "conditional_detr:ConditionalDetrAdapter",
    "dab-detr": "dab_detr:DabDetrAdapter",
    "d_fine": "d_fine:DFineAdapter",
    "deformable_detr": "deformable_detr:DeformableDetrAdapter",
    "deimv2": "deimv2:Deimv2Adapter",
    "detr": "detr:DetrOriginalAdapter",
    "lw_detr": "lw_detr:LwDetrAdapter",
    "rf_detr": "rf_detr:RfDetrAdapter",
    "rt_detr": "rt_detr:RTDetrAdapter",
    "rt_detr_v2": "rt_detr_v2:RTDetrV2Adapter",
    "table-transformer": "table_transformer:TableTransformerAdapter",
}
"""``config.model_type`` to ``module:class``, imported only when asked for."""

_TEXT = "it is told by a text what to find, so it has no classes of its own"
_LAYOUT = "it finds document regions with their reading order, and transformers cannot train it"
_REASONS: dict[str, str] = {
    "grounding-dino": _TEXT,
    "mm-grounding-dino": _TEXT,
    "omdet-turbo": _TEXT,
    "pp_doclayout_v2": _LAYOUT,
    "pp_doclayout_v3": _LAYOUT,
    "pp_doclayout_v4": _LAYOUT,
    "yolos": "its queries are tokens of the backbone, and no decoder looks with them at a memory, layer by layer",
}
"""Why a detector of a kind that looks alike cannot be read."""


def adapter_class(model_type: str) -> type[DetrAdapter]:
    """The adapter of a family.

    Raises:
        UnsupportedFamily: no adapter reads ``model_type``; the message lists those that exist.
    """
    if model_type not in FAMILIES:
        reason = f": {_REASONS[model_type]}" if model_type in _REASONS else ""
        raise UnsupportedFamily(
            f"No adapter reads models of type '{model_type}'{reason}. Supported: {', '.join(sorted(FAMILIES))}."
        )
    module, name = FAMILIES[model_type].split(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
