"""What cells need before they can train: drawn scenes, a held-out part."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qskd.data.synthetic import draw_dataset
from qskd.errors import ConfigError
from qskd.runs.options import SourceOptions
from qskd.runs.splitting import split

PARENT = "QSKD_BENCHMARK_DATA"
LAST_WRITTEN = Path("annotations") / "instances_val.json"
_NOT_FINITE = re.compile(r"(is|are) not finite|gradient norm at step \d+ is (nan|inf)")
_WITH_LABELS = frozenset({".json", ".jsonl", ".xml", ".txt", ".csv", ".yaml", ".yml", ".arrow", ".parquet"})
LOG = "log.txt"
NOTES = "cell.json"  # beside a run: its command and how it went


def find_data(name: str, given: Mapping[str, Path]) -> Path | None:
    """The folder of a dataset: as given, or below the folder that the environment names; None where it is unknown.

    Raises:
        ConfigError: what was given is not there.
    """
    if name in given:
        if not given[name].exists():
            raise ConfigError(f"--data {name}={given[name]}: there is nothing.")
        return given[name].resolve()
    parent = os.environ.get(PARENT)
    return (Path(parent) / name).resolve() if parent and (Path(parent) / name).exists() else None


def draw(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Scenes as a recipe of the grid says."""
    fresh = _fresh(folder)
    draw_dataset(fresh, **recipe)
    fresh.rename(folder)


def hold_out(data: Path, folder: Path, share: float) -> None:
    """The training split of a data set as a training and a validation split of its own."""
    fresh = _fresh(folder)
    split(SourceOptions(data=str(data)), fresh, {"train": 1 - share, "val": share})
    fresh.rename(folder)


def _fresh(folder: Path) -> Path:
    """Where a folder is made that takes its name when it is complete; what an interrupted call left is removed."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return fresh


@cache
def data_print(place: Path) -> str:
    """What tells a data set from others: its files' names and sizes, and what is in those that hold labels.

    Args:
        place: its folder, or the one file that describes it. Links are followed.

    Raises:
        ConfigError: something in it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in [place] if place.is_file() else sorted(_files_below(place)):
            digest.update(
                f"{path.relative_to(place) if path != place else place.name} {path.stat().st_size}\n".encode()
            )
            digest.update(path.read_bytes() if path.suffix.lower() in _WITH_LABELS else b"")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()[:8]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files; every real folder once, so that links in a circle end."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(parent) / name for name in names)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def recipe_print(recipe: Mapping[str, Any]) -> str:
    """What tells a recipe from others."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def weights_print(folder: Path) -> str | None:
    """What tells the weights of a model's folder from others: a digest of their file; None where there is none."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    found = weights.stat()
    return _digest(weights, found.st_size, found.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # a file that was replaced is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def ap_of(folder: Path) -> float | None:
    """AP in the summary of a finished run."""
    try:
        found = json.loads((folder / "summary.json").read_text())["metrics"].get("AP")
    except (OSError, ValueError):
        return None
    return None if found is None else float(found)


def has_diverged(folder: Path) -> bool:
    """Whether the last try of a run ended since loss, gradients or weights were not finite."""
    try:
        failed = "failed" in json.loads((folder / NOTES).read_text())
        said = (folder / LOG).read_text(errors="replace").rstrip().splitlines()[-1]
    except (OSError, ValueError, IndexError):
        return False
    return failed and _NOT_FINITE.search(said) is not None
