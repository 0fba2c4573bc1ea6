"""What makes a comparison of runs unfair, said rather than hidden."""

from collections.abc import Callable, Sequence
from typing import Any

from qskd.reporting.groups import Group, finite, metric, reference_of
from qskd.reporting.records import RunRecord

_OPTIONS = (  # of the training itself; a baseline and a distillation should share them
    "learning_rate",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "ema_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "backbone_lr_scale",
    "max_grad_norm",
    "optim",
    "flip",
    "crop",
    "zoom_out",
    "photometric",
    "detection_weight",
    "freeze_batch_norm",
    "bf16",
    "fp16",
)
_DOUBTFUL = 1.3  # times the latency of a model of the same shape
_VERSIONS = ("qskd", "torch", "torchvision", "transformers")


def warnings_about(runs: Sequence[RunRecord], groups: Sequence[Group], *, latencies: bool = True) -> list[str]:
    """One sentence for each reason not to take differences between the runs at face value.

    Args:
        runs: all of them.
        groups: the same runs without teachers, which may be trained in any way.
        latencies: whether those that the runs measured are shown.
    """
    students = [run for group in groups for run in group.runs]
    return [
        *_unequal(students),
        *(line for group in groups for line in _unlike_reference(group, groups)),
        *(_latencies(runs) + _busy_machines(runs) if latencies else []),
        *_single(runs),
    ]


def notes_about(groups: Sequence[Group]) -> list[str]:
    """What a reader should know to read the numbers."""
    notes = []
    references = [(group, reference_of(group, groups)) for group in groups if group.role == "distilled"]
    if any(len(group.runs) == 1 for group, _ in references):
        notes.append(
            "A method with one seed has no known error: repeat it with other seeds before trusting a small difference."
        )
    for group, reference in references:
        if reference is None:
            notes.append(
                f"There is no baseline to measure '{group.label}' by: add a run of the same student without teacher."
            )
        elif not {run.seed for run in group.runs} & {run.seed for run in reference.runs}:
            notes.append(
                f"'{group.label}' and '{reference.label}' have no seed in common: their means are compared, not pairs."
            )
    return notes


def _unequal(students: Sequence[RunRecord]) -> list[str]:
    facts: dict[str, Callable[[RunRecord], Any]] = {
        "image size": lambda run: " to ".join(map(str, run.image_size)) or None,
        "number of validation images": lambda run: run.metrics.get("num_images"),
        "validation annotations": lambda run: run.validation and f"digest {run.validation[:8]}",
        "number of training images": lambda run: run.train_images,
        "training steps": lambda run: run.steps,
        "classes": lambda run: ", ".join(run.metrics.get("per_class") or {}) or None,
        "versions": lambda run: ", ".join(
            f"{name} {run.environment[name]}" for name in _VERSIONS if name in run.environment
        ),
    }
    return [line for what, read in facts.items() for line in _disagreement(what, students, read)]


def _disagreement(what: str, runs: Sequence[RunRecord], read: Callable[[RunRecord], Any]) -> list[str]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if value := read(run):
            found.setdefault(str(value), []).append(run.name)
    if len(found) < 2:
        return []
    sides = "; ".join(f"{value} ({', '.join(names)})" for value, names in found.items())
    return [f"The runs differ in {what}: {sides}."]


def _unlike_reference(group: Group, groups: Sequence[Group]) -> list[str]:
    reference = reference_of(group, groups)
    if reference is None:
        return []
    ours, theirs = group.first, reference.first
    lines = []
    if (ours.family, ours.parameters) != (theirs.family, theirs.parameters):
        lines.append(
            f"'{group.label}' is another model than '{reference.label}': {_model(ours)} against {_model(theirs)}."
        )
    elif "" not in (ours.configuration, theirs.configuration) and ours.configuration != theirs.configuration:
        lines.append(
            f"'{group.label}' and '{reference.label}' are models of different configurations: {ours.configuration} "
            f"against {theirs.configuration}. Compare the config.json in their folders."
        )
    lines += _unlike_start(group, reference)
    unlike = [key for key in _OPTIONS if ours.config.get(key) != theirs.config.get(key)]
    if unlike:
        told = ", ".join(f"{key} {_option(ours, key)} against {_option(theirs, key)}" for key in unlike)
        lines.append(f"'{group.label}' and '{reference.label}' were trained with other options: {told}.")
    return lines


def _unlike_start(group: Group, reference: Group) -> list[str]:
    ours, theirs = group.first, reference.first
    if ours.inherits and not theirs.inherits:
        return [
            f"'{group.label}' began with weights of its teacher and '{reference.label}' did not: part of the "
            "difference is due to them. A run with --method none has the same start."
        ]
    if ours.began_unlike(theirs):
        return [
            f"'{group.label}' began with {ours.start} and '{reference.label}' with {theirs.start}: part of the "
            "difference is due to that."
        ]
    return []


def _model(run: RunRecord) -> str:
    parameters = f" with {run.parameters / 1e6:.2f} M parameters" if run.parameters else ""
    return f"{run.family or 'a model of unknown family'}{parameters}"


def _option(run: RunRecord, key: str) -> str:
    return str(run.config.get(key, "default"))


def _latencies(runs: Sequence[RunRecord]) -> list[str]:
    def conditions(run: RunRecord) -> str | None:
        if finite(run.cost.get("latency_ms")) is None:
            return None
        platform = run.environment.get("platform")
        parts = [str(run.cost.get("device") or "unknown device"), *([platform] if platform else [])]
        batch = run.cost.get("batch_size")
        return ", ".join([*parts, *([f"batches of {batch}"] if batch else [])])

    return [
        line.replace("The runs differ in", "Latencies cannot be compared, the runs differ in")
        for line in _disagreement("where they were measured", runs, conditions)
    ]


def _busy_machines(runs: Sequence[RunRecord]) -> list[str]:
    """Models of one shape are equally fast; where they were not, something else ran beside them."""
    alike: dict[tuple[Any, ...], list[tuple[float, str]]] = {}
    for run in runs:
        latency = finite(run.cost.get("latency_ms"))
        if latency is not None:
            shape = (run.family, run.parameters, run.cost.get("gflops"), run.cost.get("device"), tuple(run.image_size))
            alike.setdefault(shape, []).append((latency, run.name))
    lines = []
    for found in alike.values():
        (fastest, one), (slowest, other) = min(found), max(found)
        if slowest > _DOUBTFUL * fastest:
            lines.append(
                f"Latencies are doubtful, the same model took {fastest:.1f} ms in {one} and {slowest:.1f} in {other}: "
                "the machine was busy with something else."
            )
    return lines


def _single(runs: Sequence[RunRecord]) -> list[str]:
    unmeasured = [run.name for run in runs if finite(metric("AP")(run)) is None]
    resumed = [run.name for run in runs if run.resumed]
    lines = []
    if unmeasured:
        lines.append(f"No AP was measured for {', '.join(unmeasured)}.")
    if resumed:
        lines.append(f"The training time counts only what came after the interruption: {', '.join(resumed)}.")
    return lines
