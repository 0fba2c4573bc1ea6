"""The command line: `qskd <command>`; one thin file a command: parse, call ``runs``, print."""

import contextlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from qskd.runs import processes

COMMANDS: dict[str, str] = {
    "train": "train a detector plainly: a teacher, or a baseline",
    "distill": "train a student under a teacher (QSKD)",
    "cache": "run the teacher once and keep its answers, for distill --teacher_cache",
    "eval": "COCO metrics of a model on a split",
    "predict": "boxes on images and videos, drawn and as COCO results",
    "check": "look at a data set: counts, problems, a clean copy",
    "split": "divide a data set into train, val and test",
    "compare": "runs side by side: report.html, report.md, report.json",
    "inspect": "a teacher's queries drawn and counted: which are hard negatives, where they look",
    "demo": "the whole job on drawn scenes, in a few minutes",
    "models": "families and published checkpoints; students for a teacher",
    "env": "versions and devices, for a bug report",
}
ALONE = frozenset(["check", "compare", "demo", "inspect", "predict", "split"])
"""Commands that would do everything once in each process, and write the same files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit status (2 for bad input)."""
    try:
        status = 1
        try:
            status = _run(arguments)
        finally:
            processes.part(ended_well=status == 0)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `qskd env | head -1`
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            print("qskd: stopped, since nothing reads the output any more", file=sys.stderr)
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if given[0] in ("-V", "--version"):
        from qskd import __version__

        print(f"qskd {__version__}")
        return 0
    if given[0] not in COMMANDS:
        near = get_close_matches(given[0], COMMANDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        print(f"qskd: unknown command '{given[0]}'.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    world = processes.world()
    name = f"qskd {given[0]}" + (f" (process {processes.rank()} of {world})" if world > 1 else "")
    if world > 1 and given[0] in ALONE:
        print(f"{name}: works in one process. Run it without torchrun or accelerate launch.", file=sys.stderr)
        return 2
    # Imported here: `qskd --help` must not wait for torch.
    from transformers.utils import logging

    from qskd.errors import QskdError
    from qskd.runs.ending import terminated

    logging.disable_progress_bar()
    try:
        with terminated():
            return int(import_module(f"qskd.cli.{given[0]}").run(given[1:]))
    except QskdError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(error, "signal", 2)


def usage() -> str:
    """The text of `qskd --help`."""
    width = max(len(name) for name in COMMANDS)
    rows = "\n".join(f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: qskd <command> [options]\n\nMake a big detection transformer small.\n\n"
        f"commands:\n{rows}\n\n`qskd <command> --help` shows a command's options."
    )
