"""What a checkpoint of qskd holds beside the optimiser's, scheduler's and random states of the Trainer.

``distiller.safetensors`` (student and projections), ``average.safetensors`` (the moving average), ``identity.json``
(what the run is: a resumed run must be the same), ``evaluation_due`` where the run stopped before it had measured.
"""

import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn
from transformers.trainer_utils import sort_checkpoints

from qskd.errors import CheckpointError
from qskd.files import mend, remove
from qskd.trainer.ema import ModelAverage

DISTILLER = "distiller.safetensors"
AVERAGE = "average.safetensors"
TRAINED = "number of tensors that learn (norms of a pretrained backbone do not)"  # the optimiser has so many states
IDENTITY = "identity.json"
_BEFORE = {"lapd.hard_negative_box_weight": 1.0}  # how runs from before an option behaved
_GONE = {"lapd.hard_negative_schedule": "constant"}  # options of earlier versions, and how all runs behave now
DECAYED = "decayed weights"
_OLDER = "Norms or biases had weight decay in the version of qskd that wrote it: go on with that"
STATE = "trainer_state.json"
EVALUATION_DUE = "evaluation_due"
UNFINISHED = ".unfinished"  # checkpoints are written in here and then moved
ABANDONED = "abandoned-"  # and the step: a checkpoint of a way that the run has left
_STEP = re.compile(r"checkpoint-(\d+)", re.ASCII)

_log = logging.getLogger(__name__)


def save(folder: Path, module: nn.Module, average: ModelAverage | None, identity: dict[str, Any]) -> None:
    """Write a checkpoint's weights and identity."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(module, str(folder / DISTILLER))
    if average is not None:
        save_model(average.model, str(folder / AVERAGE), metadata={"updates": str(average.updates)})
    updates = average.updates if average is not None else 0
    (folder / IDENTITY).write_text(json.dumps({**identity, "average_updates": updates}, indent=2), encoding="utf-8")


def load(folder: Path, module: nn.Module, average: ModelAverage | None, identity: dict[str, Any]) -> None:
    """Restore what ``save`` wrote.

    Raises:
        CheckpointError: the checkpoint is incomplete, or belongs to another run (other teacher, classes, method).
    """
    saved = check(folder, identity)
    for name in (DISTILLER, *([AVERAGE] if average is not None else [])):
        if not (folder / name).is_file():
            raise _incomplete(folder, name)
    load_model(module, str(folder / DISTILLER))
    if average is not None:
        load_model(average.model, str(folder / AVERAGE))
        average.updates = int(saved["average_updates"])


def check(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says it is.

    Raises:
        CheckpointError: it does not say so, or is of another run.
    """
    if not (folder / IDENTITY).is_file():
        raise _incomplete(folder, IDENTITY)
    saved: dict[str, Any] = json.loads((folder / IDENTITY).read_text())
    gone = {key: value for key, value in _GONE.items() if key in saved}
    for key, value in (identity | gone).items():
        if key == TRAINED and key not in saved:
            continue  # a checkpoint from before it was noted
        was = saved.get(key, _BEFORE.get(key))
        if was != value:
            advice = _OLDER if key == DECAYED else "Resume with the settings it was started with"
            raise CheckpointError(
                f"{folder} belongs to another run: its {key} is {was!r}, this run's is {value!r}. "
                f"{advice}, or start a new run in another --output_dir."
            )
    return saved


def _incomplete(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing. Resume from another one.")


def latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete ``checkpoint-<step>`` below ``folder``; says which newer ones are not complete.

    Args:
        folder: need not exist.
        before: only checkpoints of earlier steps than this one.
    """
    steps = [
        (int(path.name.rsplit("-", 1)[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.rsplit("-", 1)[1].isdecimal()
    ]
    for _, path in sorted((step, path) for step, path in steps if before is None or step < before)[::-1]:
        damage = damage_of(path)
        if damage is None:
            return path
        _log.warning("%s is passed over: it is no complete checkpoint, %s.", path, damage)
    return None


def damage_of(folder: Path) -> str | None:
    """What a checkpoint lacks, or None: a copy or a kill may have cut files off, whose ends are looked at."""
    facts: dict[str, Any] = {}
    for name in (STATE, IDENTITY):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, RecursionError):
            return f"{name} is damaged"
        if not isinstance(content, dict):
            return f"{name} is damaged"
        facts |= content
    if "global_step" not in facts:
        return f"{STATE} is damaged"
    weights = [DISTILLER, *([AVERAGE] if facts.get("average_updates") else [])]
    others = sorted(path.name for path in folder.glob("*.pt*"))  # scaler.pt of fp16, a random state of each process
    states = [name for name in others if name.endswith((".pt", ".pth"))]
    for name in dict.fromkeys((*weights, "optimizer.pt", "scheduler.pt", *states)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not (_is_whole_safetensors if name in weights else zipfile.is_zipfile)(folder / name):
            return f"{name} is damaged"
    return None


def _is_whole_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):  # compares the file's length with what its head promises
            return True
    except (SafetensorError, OSError):
        return False


def clear(folder: Path) -> None:
    """Remove what an interrupted run left half written among its checkpoints."""
    if (folder / UNFINISHED).is_dir():
        remove(folder / UNFINISHED)
    mend(folder, ["checkpoint-*", f"{ABANDONED}*", UNFINISHED])


def rotate(folder: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Remove the oldest checkpoints beyond a number, but neither the newest nor the one of the best step."""
    if limit is None or limit <= 0:
        return
    found = [Path(path) for path in sort_checkpoints(str(folder), use_mtime=False)]  # by step: copying changes times
    kept = {newest, Path(best)} & set(found) if best else {newest}
    surplus = len(found) - max(limit, len(kept))
    for path in [path for path in found if path not in kept][: max(surplus, 0)]:
        remove(path)


def set_aside(folder: Path, resumed: Path) -> None:
    """Rename the checkpoints of later steps than the one that a run in this folder goes on from.

    They lie on another way than the run takes now, and ``latest`` would go back to it.
    """
    if resumed.resolve().parent != folder.resolve() or not (found := _STEP.fullmatch(resumed.name)):
        return
    for path in [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]:
        step = int(path.name.rsplit("-", 1)[1])
        if step > int(found.group(1)):
            aside = folder / f"{ABANDONED}{step}"
            if aside.is_dir():
                remove(aside)
            path.rename(aside)
            _log.warning("%s is of a later step than the one resumed from; it was renamed to %s.", path, aside.name)


def forget_abandoned(folder: Path) -> None:
    """Remove what ``set_aside`` has renamed: the run has a checkpoint of its own now."""
    for path in folder.glob(f"{ABANDONED}*"):
        remove(path)


def any_in(folder: Path) -> bool:
    """Whether there is a checkpoint, complete or not, also one that stepped aside when a kill came."""
    return any(path.is_dir() for pattern in ("checkpoint-*", ".checkpoint-*.old") for path in folder.glob(pattern))


def way_back(folder: Path) -> str:
    """What to tell somebody whose run has ended early: ``folder`` holds its checkpoints."""
    last = latest(folder)
    if last is None:
        run = folder.parent
        is_taken = any((run / name).is_dir() for name in ("best", "last")) or any_in(folder)
        how = f", with another --output_dir or when {run} is removed" if is_taken else ""
        return f"No checkpoint had been written yet: start anew{how}."
    return (
        f"The last complete checkpoint is {last}: the same command with --resume_from_checkpoint last goes on from it."
    )
