"""The detection criterion and the distillation terms; a new term is one file here and one line below."""

from typing import Any

from qskd.losses.attention_guided_feature import AttentionGuidedFeature, UnmaskedFeature
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction

TERMS: dict[str, Any] = {
    "agfd": AttentionGuidedFeature,
    "feature": UnmaskedFeature,
    "lapd": LocalAlignmentPrediction,
}
"""Distillation terms by name; each class fulfils ``qskd.losses.term.Term``."""
