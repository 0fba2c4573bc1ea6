"""What finished runs say of themselves, in the form that a report compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qskd.errors import ConfigError

Role = Literal["teacher", "baseline", "distilled"]

_KINDS = ("train", "distill")
_UNIMPORTANT = frozenset(  # options that say where, not how: runs that differ in nothing else are seeds of one
    [
        "output_dir",
        "seed",
        "data_seed",
        "data",
        "train_annotations",
        "train_images",
        "val_annotations",
        "val_images",
        "model",
        "student",
        "teacher",
        "teacher_cache",
        "preflight",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "resume_from_checkpoint",
        "trust_remote_code",
        "use_cpu",
        "per_device_eval_batch_size",
        "trackio_space_id",
    ]
)
_UNIMPORTANT_BEGINNINGS = ("logging_", "log_", "save_", "eval_", "dataloader_", "hub_", "push_to_hub")


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """A teacher as a distillation measured it: on the student's data, at the size it saw images in."""

    metrics: Mapping[str, Any]
    cost: Mapping[str, Any]
    fingerprint: str  # of its weights; empty where the run noted none
    image_size: tuple[int, ...] = ()  # pixels: (square,) or (shortest edge, longest edge)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished run."""

    name: str  # unique in a report
    kind: str  # "train" or "distill"
    method: str
    family: str
    seed: int | None
    steps: int | None
    train_seconds: float | None
    train_images: int | None
    image_size: tuple[int, ...]  # pixels: (square,) or (shortest edge, longest edge)
    metrics: Mapping[str, Any]  # as ``CocoMetrics.as_dict``; empty where nothing was measured
    cost: Mapping[str, Any]  # as ``Cost.as_dict``
    resumed: bool = False
    start: str = ""  # the weights that training began with, the same for all seeds; empty where the run noted none
    configuration: str = ""  # digest of the model's configuration; empty where the run noted none
    teacher: TeacherRecord | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # the options that differ from their defaults
    log: Sequence[Mapping[str, Any]] = ()  # entries of metrics.jsonl
    validation: str | None = None  # digest of the validation annotations; None where they are gone
    taught: str | None = None  # fingerprint under which this run's model is another run's teacher

    @classmethod
    def from_summary(cls, name: str, summary: Mapping[str, Any], **more: Any) -> "RunRecord":
        """Read a run's summary.json.

        Args:
            name: what the report calls the run.
            summary: its content; absent numbers stay unknown.
            more: the fields that a summary does not hold.

        Raises:
            ConfigError: it is no summary of a training or distillation.
        """
        kind = summary.get("kind")
        if kind not in _KINDS:
            raise ConfigError(
                f"The summary.json of '{name}' has kind {kind!r}; expected one of {', '.join(_KINDS)}. "
                "Give folders written by `qskd train` or `qskd distill`."
            )
        teacher, start = summary.get("teacher"), summary.get("start") or {}
        return cls(
            name=name,
            kind=str(kind),
            method=str(summary.get("method") or "none"),
            family=str(summary.get("family") or ""),
            seed=summary.get("seed"),
            steps=summary.get("steps"),
            train_seconds=summary.get("train_seconds"),
            train_images=summary.get("train_images"),
            image_size=tuple(summary.get("image_size") or ()),
            metrics=summary.get("metrics") or {},
            cost=summary.get("cost") or {},
            resumed=bool(summary.get("resumed")),
            start=str(start.get("weights") or ""),
            configuration=str(start.get("configuration") or ""),
            teacher=None
            if not teacher
            else TeacherRecord(
                teacher.get("metrics") or {},
                teacher.get("cost") or {},
                str(teacher.get("fingerprint") or ""),
                tuple(teacher.get("image_size") or summary.get("image_size") or ()),
            ),
            environment=summary.get("environment") or {},
            **more,
        )

    @property
    def role(self) -> Role:
        """A plain training is a baseline unless it made a teacher; so is a distillation without any term."""
        if self.taught is not None:
            return "teacher"
        return "distilled" if self.kind == "distill" and self.method != "none" else "baseline"

    @property
    def parameters(self) -> int | None:
        """Parameters of the model."""
        return self.cost.get("parameters")

    def began_unlike(self, other: "RunRecord") -> bool:
        """Whether the two are known to have begun with different weights."""
        return bool(self.start and other.start) and self.start != other.start

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that decide what comes out; runs of one recipe differ in their seed."""
        return {
            key: value
            for key, value in self.config.items()
            if key not in _UNIMPORTANT and not key.startswith(_UNIMPORTANT_BEGINNINGS)
        }

    @property
    def inherits(self) -> bool:
        """Whether the student began with its teacher's weights."""
        if self.start:
            return "weights of teacher" in self.start
        return self.kind == "distill" and "student" not in self.config and bool(self.config.get("inherit", True))
