"""The run folder: what lies where, and who may write into it."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from qskd.errors import ConfigError
from qskd.trainer import checkpoints


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``config.yaml``, ``checkpoints/``, ``best/``, ``last/``, ``metrics.jsonl``, ``eval/``, ``summary.json``, ..."""

    path: Path

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

    def model(self) -> Path:
        """The best weights, or the last where nothing was evaluated."""
        return self.best if self.best.is_dir() else self.last

    def open(self, resume: str | None) -> Path | None:
        """Make the folder ready; the checkpoint to resume from, or None for a new run.

        Args:
            resume: None, ``"true"`` / ``"last"`` for the latest complete checkpoint, or a checkpoint's folder.

        Raises:
            ConfigError: the folder holds a run and nobody asked to resume it; or there is nothing to resume from.
        """
        if resume in (None, "", "false", "False"):
            self._refuse_other_run()
            self.path.mkdir(parents=True, exist_ok=True)
            return None
        if resume in ("true", "True", "last"):
            found = checkpoints.latest(self.path / "checkpoints")
            if found is None:
                raise ConfigError(
                    f"There is no complete checkpoint in {self.path / 'checkpoints'} to resume from. "
                    "Leave out --resume_from_checkpoint to start anew."
                )
            return found
        given = Path(str(resume))
        if not (given / "trainer_state.json").is_file():
            raise ConfigError(f"{given} is not a complete checkpoint: it holds no trainer_state.json.")
        return given

    def _refuse_other_run(self) -> None:
        if self.path.is_file():
            raise ConfigError(f"--output_dir {self.path} is a file; give a folder.")
        taken = [name for name in ("config.yaml", "checkpoints", "best", "summary.json") if (self.path / name).exists()]
        if taken:
            raise ConfigError(
                f"{self.path} holds another run ({', '.join(taken)}). Give another --output_dir, "
                "or continue that run with --resume_from_checkpoint last."
            )

    def save_json(self, name: str, content: Any) -> None:
        """Write ``name`` below the folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def save_config(self, command: str, *options: Any) -> None:
        """Write the options that differ from their defaults, so that ``qskd <command> --config`` runs them again."""
        chosen: dict[str, Any] = {}
        for group in options:
            chosen |= changed_options(group)
        text = yaml.safe_dump(chosen, sort_keys=True, allow_unicode=True)
        self.config.write_text(f"# qskd {command} --config {self.config.name}\n{text}")


def changed_options(options: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from what the class gives by itself, as plain values."""
    defaults = type(options)()
    changed = {}
    for entry in fields(options):
        value, default = _plain(getattr(options, entry.name)), _plain(getattr(defaults, entry.name))
        if entry.init and value != default and isinstance(value, str | int | float | bool | list):
            changed[entry.name] = value
    return changed


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


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


def as_plain(value: Any) -> Any:
    """A dataclass as a dictionary for JSON."""
    return asdict(value)
