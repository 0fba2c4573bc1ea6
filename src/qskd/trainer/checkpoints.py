"""What a checkpoint of qskd holds beside the optimiser's, scheduler's and random states of the Trainer.

``distiller.safetensors`` (student and projections), ``average.safetensors`` (the moving average), ``identity.json``
(what the run is: a resumed run must be the same).
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from qskd.errors import CheckpointError
from qskd.trainer.ema import ModelAverage

DISTILLER = "distiller.safetensors"
AVERAGE = "average.safetensors"
IDENTITY = "identity.json"


def save(folder: Path, module: nn.Module, average: ModelAverage | None, identity: dict[str, Any]) -> None:
    """Write a checkpoint's weights and identity."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(module, str(folder / DISTILLER))
    if average is not None:
        save_model(average.model, str(folder / AVERAGE), metadata={"updates": str(average.updates)})
    updates = average.updates if average is not None else 0
    (folder / IDENTITY).write_text(json.dumps({**identity, "average_updates": updates}, indent=2))


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
    for key, value in identity.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{folder} belongs to another run: its {key} is {saved.get(key)!r}, this run's is {value!r}. "
                "Resume with the settings it was started with, or start a new run in another --output_dir."
            )
    return saved


def _incomplete(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing. Resume from another one.")


def latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete ``checkpoint-<step>`` below ``folder``; the trainer's state is written last.

    Args:
        folder: need not exist.
        before: only checkpoints of earlier steps than this one.
    """
    steps = [
        (int(path.name.rsplit("-", 1)[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rsplit("-", 1)[1].isdigit() and (path / "trainer_state.json").is_file()
    ]
    earlier = [(step, path) for step, path in steps if before is None or step < before]
    return max(earlier)[1] if earlier else None
