"""What a student began with, for the summary: runs can be compared where they began alike."""

from qskd.models.adapter import DetrAdapter
from qskd.models.loading import configuration_fingerprint, weights_fingerprint
from qskd.runs.options import PairOptions

_DIGITS = 12  # of a fingerprint, in the summary


def start_of(source: str, opened: DetrAdapter, backbone: str | None = None) -> dict[str, str]:
    """The start of a student opened from a source; the same for all seeds.

    Args:
        source: a hub id, a folder, or a configuration (.json).
        opened: as it was opened, before the rows of its class head were changed.
        backbone: what the weights of its backbone were taken from, if from anywhere.
    """
    random = source.endswith(".json")
    weights = "random weights" if random else f"weights {weights_fingerprint(opened.model)[:_DIGITS]}"
    return _start(weights + _backbone(backbone), opened)


def start_of_derived(pair: PairOptions, student: DetrAdapter, teacher: DetrAdapter) -> dict[str, str]:
    """The start of a student that was derived from its teacher, or took its weights; the same for all seeds."""
    kind = "selected weights" if pair.weight_selection else "weights"
    weights = f"{kind} of teacher {weights_fingerprint(teacher.model)[:_DIGITS]}" if pair.inherit else "random weights"
    return _start(weights + _backbone(pair.student_backbone_weights), student)


def _backbone(source: str | None) -> str:
    return "" if source is None else f" and backbone {source}"


def _start(weights: str, student: DetrAdapter) -> dict[str, str]:
    return {"weights": weights, "configuration": configuration_fingerprint(student.model)[:_DIGITS]}
