"""The run folder: what lies where, and who may write into it."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from qskd.errors import ConfigError, SavingError
from qskd.evaluation.kept import KeptDetections
from qskd.files import whole_file
from qskd.models.backbones import is_named
from qskd.trainer import checkpoints
from qskd.trainer.agreement import decided
from qskd.trainer.saving import recover

_PATHS = frozenset(  # options that may name files or folders here
    [
        "backbone_weights",
        "data",
        "model",
        "student",
        "student_backbone",
        "student_backbone_weights",
        "teacher",
        "teacher_cache",
        "train_annotations",
        "train_images",
        "val_annotations",
        "unlabeled",
        "val_images",
    ]
)
_KEPT = ("best", "last", "summary.json")  # what a run leaves behind, beside checkpoints, that is worth something


class _NoAliases(yaml.SafeDumper):
    """Writes a list that stands in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``config.yaml``, ``checkpoints/``, ``best/``, ``last/``, ``metrics.jsonl``, ``eval/``, ``summary.json``, ..."""

    path: Path
    is_main: bool = True  # whether this process may write; of several, one does

    @property
    def config(self) -> Path:
        """The options that run it again."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """What came out, for people and for `qskd compare`."""
        return self.path / "summary.json"

    @property
    def best(self) -> Path:
        """The model to use: a plain from_pretrained folder."""
        return self.path / "best"

    @property
    def last(self) -> Path:
        """The weights at the end of training."""
        return self.path / "last"

    @property
    def detections(self) -> Path:
        """What the kept model found on the validation images."""
        return self.path / "eval" / "val_detections.npz"

    @property
    def teacher_detections(self) -> Path:
        """What the teacher of a distillation found on them."""
        return self.path / "eval" / "teacher_detections.npz"

    def model(self) -> Path:
        """The best weights, or the last where nothing was evaluated."""
        return self.best if self.best.is_dir() else self.last

    def open(self, resume: str | bool | None) -> Path | None:
        """Make the folder ready; the checkpoint to resume from, or None for a new run: the same in all processes.

        Args:
            resume: None, ``"true"`` / ``"last"`` for the latest complete checkpoint, ``"auto"`` for that where there is
                one and else a new run, or a checkpoint's folder.

        Raises:
            ConfigError: the folder holds a run and nobody asked to resume it; or there is nothing to resume from.
        """
        return decided(lambda: self._ready(resume))

    def _ready(self, resume: str | bool | None) -> Path | None:
        checkpoint = self._checkpoint(resume)
        if not self.is_main:
            return checkpoint
        if checkpoint is None or not checkpoint.resolve().is_relative_to(self.path.resolve()):
            self._refuse_other_run(begun_is_mine=resume == "auto")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output_dir {self.path} cannot be made ({error.strerror}).") from error
        self._check_writable()
        recover(self.path)
        return checkpoint

    def _check_writable(self) -> None:
        """Find out now what would else be found out at the first checkpoint."""
        try:
            with TemporaryFile(dir=self.path):  # under a name that is new for certain, or under none
                pass
        except OSError as error:
            raise ConfigError(
                f"--output_dir {self.path} cannot be written to ({os.strerror(error.errno or 0)}). Give another folder."
            ) from error

    def _checkpoint(self, resume: str | bool | None) -> Path | None:
        if resume in (None, False, "", "false", "False"):
            return None
        if resume == "auto":
            return checkpoints.latest(self.path / "checkpoints")
        if resume in (True, "true", "True", "last"):
            found = checkpoints.latest(self.path / "checkpoints")
            if found is None:
                raise ConfigError(
                    f"There is no complete checkpoint in {self.path / 'checkpoints'} to resume from. "
                    "Leave out --resume_from_checkpoint to start anew, in another folder or without this one."
                )
            return found
        given = Path(str(resume))
        if (damage := checkpoints.damage_of(given)) is not None:
            raise ConfigError(
                f"{given} is not a complete checkpoint: {damage}. Give another one, or `last` for the newest complete."
            )
        return given

    def _refuse_other_run(self, *, begun_is_mine: bool) -> None:
        if self.path.is_file():
            raise ConfigError(f"--output_dir {self.path} is a file; give a folder.")
        taken = [*(["config.yaml"] if self.config.exists() else []), *self._worth()]
        if begun_is_mine and not any((self.path / name).exists() for name in _KEPT):
            return  # killed before its first checkpoint, it begins anew
        if taken:
            can_resume = checkpoints.latest(self.path / "checkpoints") is not None
            way_out = "continue that run with --resume_from_checkpoint last" if can_resume else "remove the folder"
            raise ConfigError(
                f"{self.path} holds another run ({', '.join(taken)}). Give another --output_dir, or {way_out}."
            )

    def _worth(self) -> list[str]:
        """What a run has left here that is worth something."""
        kept = [name for name in _KEPT if (self.path / name).exists()]
        return (["checkpoints"] if checkpoints.any_in(self.path / "checkpoints") else []) + kept

    @contextmanager
    def claimed(self, command: str, options: Mapping[str, Any]) -> Iterator[None]:
        """A training inside: config.yaml marks the folder as taken.

        It is removed when the training fails with nothing to keep, so that the same command can be tried again.
        """
        self.save_config(command, options)
        try:
            yield
        except BaseException:
            if self.is_main and not self._worth():
                self.config.unlink(missing_ok=True)
            raise

    def save_json(self, name: str, content: Any) -> None:
        """Write ``name`` below the folder."""
        if self.is_main:
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            self._write(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def save_detections(self, path: Path, found: KeptDetections) -> None:
        """Write what a model found; ``path`` is ``detections`` or ``teacher_detections``."""
        if self.is_main:
            self._write(path, found.save)

    def save_config(self, command: str, options: Mapping[str, Any]) -> None:
        """Write options such that ``qskd <command> --config`` runs them again."""
        if self.is_main:
            text = yaml.dump(dict(options), Dumper=_NoAliases, sort_keys=True, allow_unicode=True)
            text = f"# qskd {command} --config {self.config.name}\n{text}"
            self._write(self.config, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        """A file whole or not at all.

        Raises:
            SavingError: it cannot be written.
        """
        try:
            with whole_file(path) as fresh:
                write(fresh)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            back = checkpoints.way_back(self.path / "checkpoints")
            raise SavingError(f"{path} cannot be written ({reason}). {back}") from error


def changed_options(*groups: Any) -> dict[str, Any]:
    """Fields of dataclasses that were given other values than their defaults, as plain values.

    Files and folders are named by absolute paths, so that they are found from wherever the options are read.
    """
    changed = {}
    for options in groups:
        given = getattr(options, "given", vars(options))
        for entry in fields(options):
            value = _plain(given.get(entry.name))
            # How often a run was interrupted is no part of what it is.
            if entry.init and value != _default(entry) and entry.name != "resume_from_checkpoint" and _is_plain(value):
                changed[entry.name] = _absolute(value) if entry.name in _PATHS and not is_named(str(value)) else value
    return changed


def _default(entry: Field[Any]) -> Any:
    return _plain(entry.default if entry.default_factory is MISSING else entry.default_factory())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 50 and 50.0 are one number, however it was given
    return os.fspath(value) if isinstance(value, os.PathLike) else getattr(value, "value", value)


def _absolute(value: Any) -> Any:
    """The absolute path of a file or folder that is there; else (a hub id) the value itself."""
    path = Path(str(value)).expanduser()
    return str(path.absolute()) if path.exists() else value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    names = (
        "qskd",
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
        "faster-coco-eval",
        "scipy",
        "numpy",
    )
    found = {"python": sys.version.split()[0], "platform": platform.platform(terse=True)}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
