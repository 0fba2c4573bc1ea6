"""Running tasks: several side by side, each behind what it needs, stopped in time and continued by the next call."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from accuracy_commands import REPOSITORY, command_line
from accuracy_machine import commit, hardware
from accuracy_preparing import LOG
from accuracy_states import Task, notes_of, state_of, take_lock, teacher_print, write_notes

from qskd.trainer import checkpoints

_START_UP = 60.0  # seconds that a run should have at least
_PATIENCE = 20.0  # seconds that a run that was told to stop is waited for
_BY_SIGNAL = (130, 143)
_LEFT_OVER = ("checkpoints", "best", "last")
_PAUSE = 0.5  # seconds between two looks at the running processes


@dataclass(slots=True)
class Sitting:
    """A running process."""

    task: Task
    process: subprocess.Popen[bytes]
    lock: int  # an open file, also of the process: nobody else trains the cell while it lives
    from_step: int
    began: float


@dataclass(slots=True)
class Runner:
    """Runs tasks in their order.

    Args:
        tasks: by name, each behind those that it needs.
        jobs: processes side by side.
        minutes: after ``began``, when nothing is left running; None for no limit.
        lean: remove the models of finished cells; numbers stay.
        environment: of the processes, beside our own.
        began: when the call began, by ``time.monotonic``.
    """

    tasks: Mapping[str, Task]
    jobs: int = 1
    minutes: float | None = None
    lean: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    failed: set[str] = field(default_factory=set)
    _awaited: set[str] = field(default_factory=set)  # prepared by another call
    _elsewhere: set[str] = field(default_factory=set)  # trained by another call, or by what one left behind
    _running: list[Sitting] = field(default_factory=list)

    def run(self) -> bool:
        """Run until all is done, nothing more can be, or time is up; whether all is done."""
        try:
            while self._step():
                time.sleep(_PAUSE)
        finally:
            self._stop_all()
        return all(task.done for task in self.tasks.values())

    def _step(self) -> bool:
        """Look at what runs and start what can be; whether there is more to wait for."""
        self._collect()
        if self._left() <= 0:
            return False
        awaited, self._awaited = self._awaited, set()
        while len(self._running) < self.jobs:
            task = self._next()
            if task is None:
                break
            self._start(task)
        for name in sorted(self._awaited - awaited):
            _say(f"{name}: is being prepared by another call")
        return bool(self._running or self._awaited)

    def _next(self) -> Task | None:
        """The first task that is neither done nor running nor waiting, and that there is time for."""
        running = {sitting.task.name for sitting in self._running} | self._elsewhere | self._awaited
        failed_last = sorted(self.tasks.items(), key=lambda item: state_of(item[1]) == "failed")
        for name, task in failed_last:
            if task.done or name in running or name in self.failed:
                continue
            if any(need in self.failed for need in task.needs):
                self.failed.add(name)
                continue
            if all(self.tasks[need].done for need in task.needs) and self._fits(task):
                return task
        return None

    def _fits(self, task: Task) -> bool:
        """Whether a task can finish in time, or could not within any call and goes on from its checkpoints."""
        if self.minutes is None:
            return True
        needed = self.expected(task)
        left = self._left()
        if needed is None or needed > 60 * self.minutes - _PATIENCE - _START_UP:
            return left > _START_UP
        return needed <= left

    def expected(self, task: Task) -> float | None:
        """Seconds that a task will take, as others of its kind did; None where none is finished."""
        kind = task.facts.get("kind")
        others = [notes_of(other.folder) for other in self.tasks.values() if other.done] if kind is not None else []
        taken = [notes["seconds"] for notes in others if notes.get("kind") == kind and "seconds" in notes]
        return max(taken) * (1 - self._share_done(task)) if taken else None

    def _share_done(self, task: Task) -> float:
        checkpoint = checkpoints.latest(task.folder / "checkpoints") if task.command else None
        steps = _option(task, "--max_steps")
        return _step_of(checkpoint) / int(steps) if checkpoint is not None and steps is not None else 0.0

    def _left(self) -> float:
        if self.minutes is None:
            return float("inf")
        return 60 * self.minutes - _PATIENCE - (time.monotonic() - self.began)

    # ---- one task ----------------------------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        if task.make is not None:
            self._prepare(task, task.make)
            return
        lock = take_lock(task.folder)
        if lock is None:
            _say(f"{task.name}: is being trained by another call")
            self._elsewhere.add(task.name)
            return
        if task.done:  # by now, by another call
            os.close(lock)
            return
        checkpoint = checkpoints.latest(task.folder / "checkpoints")
        if checkpoint is not None and state_of(task) == "changed":
            _say(f"{task.name}: was begun otherwise than it would be now, so it begins anew")
            checkpoint = None
        if checkpoint is None:
            shutil.rmtree(task.folder, ignore_errors=True)  # what an interrupted run left is worth nothing
        task.folder.mkdir(parents=True, exist_ok=True)
        step = _step_of(checkpoint)
        self._note_start(task, checkpoint)
        command = command_line(task) + (["--resume_from_checkpoint", "last"] if checkpoint is not None else [])
        with (task.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                pass_fds=(lock,),
            )
        expected = self.expected(task)
        about = f", about {expected / 60:.1f} min" if expected is not None else ""
        _say(f"{task.name}: " + (f"going on from step {step}" if step else "begun") + about)
        self._running.append(Sitting(task, process, lock, step, time.monotonic()))

    def _prepare(self, task: Task, make: Callable[[], None]) -> None:
        """Make what is made here, unless another call does so: then it is waited for."""
        lock = take_lock(task.folder.parent)
        if lock is None:
            self._awaited.add(task.name)
            return
        try:
            if not task.done:
                _say(f"{task.name}: preparing")
                make()
        finally:
            os.close(lock)

    def _note_start(self, task: Task, checkpoint: Path | None) -> None:
        before = notes_of(task.folder)
        # Versions before noted the commit and the machine of the last sitting alone.
        known = {name: before[name] for name in ("commit", "hardware") if name in before}
        earlier = [known | one for one in before.get("sittings", [])]
        sitting = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_step": _step_of(checkpoint),
            "owes_evaluation": checkpoint is not None and (checkpoint / checkpoints.EVALUATION_DUE).is_file(),
            "commit": commit(),
            "hardware": hardware(),
        }
        notes = {
            "jobs": self.jobs,
            "errors": before.get("errors", 0),
            **task.facts,
            **({} if (teacher := teacher_print(task)) is None else {"teacher": teacher}),
            "sittings": [*earlier, sitting],
        }
        write_notes(task, notes)

    def _collect(self) -> None:
        """Take in the processes that have ended."""
        for sitting in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(sitting)
            self._note_end(sitting)
            os.close(sitting.lock)
            if sitting.process.returncode == 0 and sitting.task.done:
                for name in self._left_over(sitting.task):
                    shutil.rmtree(sitting.task.folder / name, ignore_errors=True)
                _say(f"{sitting.task.name}: done in {(time.monotonic() - sitting.began) / 60:.1f} min")
            else:
                self._give_up(sitting)

    def _left_over(self, task: Task) -> tuple[str, ...]:
        """What of a finished run nobody needs; teachers are needed."""
        is_trial = task.name.startswith("search/")
        return _LEFT_OVER if is_trial or (self.lean and task.name.startswith("cells/")) else _LEFT_OVER[:1]

    def _give_up(self, sitting: Sitting) -> None:
        """What ended by a signal goes on with the next call; an error counts, and after a second one it begins anew."""
        task, status = sitting.task, sitting.process.returncode
        self.failed.add(task.name)
        if status < 0 or status in _BY_SIGNAL:
            _say(f"{task.name}: ended by a signal (exit status {status}), to be continued")
            return
        errors = notes_of(task.folder).get("errors", 0) + 1
        write_notes(task, notes_of(task.folder) | {"errors": errors, "failed": status})
        if errors > 1:
            shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
        lines = (task.folder / LOG).read_text(errors="replace").strip().splitlines()
        _say(f"{task.name}: FAILED (exit status {status}); {task.folder / LOG} ends with")
        _say("\n".join(f"    {line}" for line in lines[-4:]))

    def _note_end(self, sitting: Sitting) -> None:
        notes = notes_of(sitting.task.folder)
        sittings = notes.get("sittings") or [{}]
        sittings[-1]["seconds"] = round(time.monotonic() - sitting.began, 1)
        total = sum(one.get("seconds", 0.0) for one in sittings)
        write_notes(sitting.task, notes | {"sittings": sittings, "seconds": round(total, 1)})

    def _stop_all(self) -> None:
        """End what still runs; checkpoints let the next call go on."""
        for sitting in self._running:
            sitting.process.terminate()
        end = time.monotonic() + _PATIENCE
        for sitting in self._running:
            try:
                sitting.process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                sitting.process.kill()
                sitting.process.wait()
            self._note_end(sitting)
            os.close(sitting.lock)
            _say(f"{sitting.task.name}: stopped, to be continued")
        self._running.clear()


def _option(task: Task, name: str) -> str | None:
    return task.command[task.command.index(name) + 1] if name in task.command else None


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint is not None else 0


def _say(line: str) -> None:
    print(line, flush=True)
