"""Runs that are killed: a process that has imported everything forks one child after the other and SIGKILLs it.

Run as a program: ``python builders_kills.py SCENES FOLDER KILLS``. It trains ``FOLDER/whole`` undisturbed and
``FOLDER/cut`` with so many kills, each child going on from the last complete checkpoint, and prints what happened.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from builders_trainer import adapter_of, trainer_of
from qskd.runs.folder import RunFolder
from qskd.trainer import checkpoints

OPTIONS = {
    "max_steps": 44,
    "per_device_train_batch_size": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "lr_scheduler_type": "cosine",
    "ema_decay": 0.9,
}
WRITING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Fuse:
    """Kills this process at the n-th moment at which the run folder is being changed."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.left = str(folder), length

    def burn(self, before: Callable[[], Any] = lambda: None) -> None:
        """One moment has come."""
        self.left -= 1
        if self.left == 0:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own file operations, before they happen."""
        is_ours = event in WRITING and str(arguments[0]).startswith(self.folder)
        if is_ours and (event != "open" or {"w", "a"} & set(str(arguments[1]))):
            self.burn()

    def lit(self) -> None:
        """Watch those and the writers of PyTorch and safetensors, which are killed with the file half written."""
        sys.addaudithook(self.audit)
        for module, name, place in (
            (torch, "save", 1),
            (safetensors.torch, "save_file", 1),
            (checkpoints, "save_model", 1),
        ):
            setattr(module, name, self._watched(getattr(module, name), place))

    def _watched(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def written(*arguments: Any, **more: Any) -> None:
            write(*arguments, **more)
            path = Path(str(arguments[place]))
            self.burn(lambda: os.truncate(path, path.stat().st_size // 2))

        return written


def train(folder: Path, scenes: Path) -> None:
    """What `qskd train` does with a run folder, without measuring anything at the end."""
    has_started = checkpoints.latest(folder / "checkpoints") is not None
    if not has_started:  # the message says: remove the folder
        shutil.rmtree(folder, ignore_errors=True)
    resume = RunFolder(folder).open("last" if has_started else None)
    trainer = trainer_of(folder, scenes, adapter_of("detr", dropout=0.1), **OPTIONS)
    measured = trainer.evaluate

    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        """An AP that rises and falls with the weights; that of models which know nothing is always 0."""
        found = measured(*arguments, **options)
        weight = next(trainer.evaluated.model.parameters()).double().abs().sum()
        found["eval_AP"] = trainer.state.global_step // 6 + float(weight * 1e3 % 1)
        return found

    trainer.evaluate = evaluate  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.keep("last")


def forked(job: Callable[[], None], log: Path, after: float | None = None) -> bool:
    """Run a job in a process of its own, killed after some seconds; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            job()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return False
    assert os.WEXITSTATUS(status) == 0, log.read_text()[-4000:]
    return True


def main(scenes: Path, folder: Path, kills: int) -> None:
    """Two runs, one of them killed again and again."""
    draw = random.Random(3)
    log = folder / "log.txt"
    assert forked(lambda: train(folder / "whole", scenes), log)

    def doomed(length: int) -> None:
        Fuse(folder / "cut", length).lit()
        train(folder / "cut", scenes)

    ways = []
    for number in range(kills):
        by_time = number % 4 == 3
        length = 10**9 if by_time else draw.randint(1, 80)
        after = draw.uniform(0.1, 0.7) if by_time else None
        ended = forked(lambda length=length: doomed(length), log, after)  # type: ignore[misc]
        last = checkpoints.latest(folder / "cut" / "checkpoints")
        ways.append([length if after is None else f"{after:.2f} s", ended, last.name if last else None])
    assert forked(lambda: train(folder / "cut", scenes), log)
    print(json.dumps(ways))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
