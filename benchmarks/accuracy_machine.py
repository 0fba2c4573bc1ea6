"""What a cell was run by: the code's commit, and the machine."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from accuracy_commands import REPOSITORY


def commit() -> str:
    """The repository's commit now, with a plus where files differ from it; in a copy without history, what is told."""
    if told := os.environ.get("QSKD_COMMIT"):
        return told
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


@cache
def hardware() -> str:
    """The accelerator's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
