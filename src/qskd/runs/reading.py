"""Run folders as a report needs them: what finished runs wrote, and which of them taught which."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qskd.data.formats.coco import CocoSource
from qskd.errors import ConfigError, DataError, QskdError
from qskd.files import plain_yaml
from qskd.models.fingerprints import weights_fingerprint
from qskd.reporting.records import RunRecord
from qskd.runs import building
from qskd.runs.folder import RunFolder
from qskd.runs.recorded_data import data_of

_LARGEST = 4 * 2**30  # bytes of an annotation file


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder with what its files say."""

    folder: RunFolder
    record: RunRecord


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run once, under a name of its own.

    Raises:
        ConfigError: none was given, or a folder holds no finished run; says what to do about it.
    """
    folders = [RunFolder(path) for path in dict.fromkeys(Path(path).expanduser().resolve() for path in paths)]
    if not folders:
        raise ConfigError("No runs: give one or more folders written by `qskd train` or `qskd distill`.")
    names = _names([folder.path for folder in folders])
    return [Run(folder, _read(folder, name)) for folder, name in zip(folders, names, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _read(folder: RunFolder, name: str) -> RunRecord:
    if not folder.summary.is_file():
        raise _not_a_run(folder.path)
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder.summary} is not JSON ({error}): the file is damaged, run it again.") from error
    if not isinstance(summary, dict):
        raise ConfigError(f"{folder.summary} holds no summary of a run.")
    config = _config(folder.config)
    return RunRecord.from_summary(
        name,
        summary,
        config=config,
        log=tuple(_log(folder.path / "metrics.jsonl")),
        validation=_validation_digest(config),
    )


def _not_a_run(path: Path) -> ConfigError:
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "does not exist"
        return ConfigError(f"{path} {what}. Give folders written by `qskd train` or `qskd distill`.")
    if (path / "config.yaml").is_file() or (path / "checkpoints").is_dir():
        return ConfigError(
            f"The run in {path} has not finished: it holds no summary.json. Let it finish, or continue it with "
            "--resume_from_checkpoint last."
        )
    if (path.parent / "summary.json").is_file():
        return ConfigError(f"{path} is a part of a run. Give the run's own folder, {path.parent}.")
    inside = sorted(found.parent.name for found in path.glob("*/summary.json"))
    hint = f" It holds runs, though: give {', '.join(str(path / name) for name in inside[:4])}." if inside else ""
    return ConfigError(
        f"{path} is no run folder: it holds no summary.json. Give folders written by `qskd train` or "
        f"`qskd distill`.{hint}"
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = plain_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a metrics file; a line cut off by a crash is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _validation_digest(config: Mapping[str, Any]) -> str | None:
    """SHA-256 of the validation annotations, so that copies of one file count as one; None where they are not here."""
    try:
        data = data_of(config)
        if data.val_annotations:
            return _digest(Path(data.val_annotations))
        if not data.data:
            return None
        source = building.open_data(data)
        if not isinstance(source, CocoSource):
            return source.load(data.val_split).fingerprint()
        return _digest(source.files[data.val_split])
    except (DataError, OSError, KeyError):
        return None


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, which may be anything that a config names: a device has no end, a pipe makes wait."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_teachers(runs: Sequence[Run]) -> list[Run]:
    """The runs, those marked whose model is another run's teacher: the one with its folder first, then all others.

    The folder that a teacher lay in may hold another model by now, so its weights are compared, too.
    """
    marks: dict[int, str] = {}
    for distilled in runs:
        teacher = distilled.record.teacher
        if teacher is None or teacher.fingerprint in marks.values():
            continue
        others = [at for at, run in enumerate(runs) if run is not distilled and run.record.kind == "train"]
        folder = teacher_folder(distilled.record)
        found = [at for at in others if folder is not None and folder.is_relative_to(runs[at].folder.path)]
        if found and folder and teacher.fingerprint and not _has_weights(folder, teacher.fingerprint):
            found = []
        found = found or [at for at in others if _has_weights(runs[at].folder.model(), teacher.fingerprint)]
        marks |= {at: teacher.fingerprint for at in found[:1]}
    return [
        replace(run, record=replace(run.record, taught=marks[at])) if at in marks else run
        for at, run in enumerate(runs)
    ]


def teacher_folder(record: RunRecord) -> Path | None:
    """Where the teacher of a distillation lay, if that was a folder which is still there."""
    source = record.config.get("teacher")
    path = Path(str(source)).expanduser() if source else None
    return path.resolve() if path is not None and path.is_dir() else None


def _has_weights(folder: Path, fingerprint: str) -> bool:
    try:
        adapter = building.open_model(str(folder), None, box_frame="content")
    except QskdError:
        return False
    return weights_fingerprint(adapter.model) == fingerprint
