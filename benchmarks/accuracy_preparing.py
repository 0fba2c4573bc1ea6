"""What cells need before they can train: drawn scenes, a held-out part, students with a teacher's weights."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import set_seed

from qskd.data.synthetic import draw_dataset
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.models.deriving import select_weights
from qskd.models.processors import save_model
from qskd.runs import building
from qskd.runs.options import SourceOptions
from qskd.runs.splitting import split

PARENT = "QSKD_BENCHMARK_DATA"
LAST_WRITTEN = Path("annotations") / "instances_val.json"
INHERITED = "inherited.json"
_NOT_FINITE = re.compile(r"(is|are) not finite|gradient norm at step \d+ is (nan|inf)")
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
    draw_dataset(folder, **recipe)


def hold_out(data: Path, folder: Path, share: float) -> None:
    """The training split of a data set as a training and a validation split of its own."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    split(SourceOptions(data=str(data)), fresh, {"train": 1 - share, "val": share})
    fresh.rename(folder)


def inherit(
    configuration: Path, teacher: Path, seed: int, image_size: int, folder: Path, backbone: str | None = None
) -> None:
    """A student that begins with its teacher's weights, as a ``from_pretrained`` folder.

    The weights are those that ``qskd distill --weight_selection --seed SEED`` begins with; but DETR-like families load
    a folder's batch norms frozen, where those of a configuration learn.

    Args:
        configuration: the student's.
        teacher: a trained detector of the same family.
        seed: of what is not inherited.
        image_size: pixels, for the image processor.
        folder: written whole or not at all.
        backbone: what the student's backbone begins with, where not with the teacher's.
    """
    source = building.open_model(str(teacher), None, box_frame="content")
    names = [source.id2label[number] for number in sorted(source.id2label)]
    set_seed(seed)
    student = building.open_model(str(configuration), names, box_frame="content", backbone_weights=backbone)
    report = select_weights(student, source, names)
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(student, fresh, size=ImageSize(square=image_size))
    notes = {"inherited": report.inherited, "weights": report.total, "teacher": weights_print(teacher)}
    (fresh / INHERITED).write_text(json.dumps(notes))
    fresh.rename(folder)


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
