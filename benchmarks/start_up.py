"""How long a user waits before anything happens."""

import subprocess
import sys

from timing import interleaved


def import_seconds(quick: bool) -> float:
    """Seconds that ``import qskd`` adds to starting python."""
    return _beyond_python([sys.executable, "-c", "import qskd"], quick)


def help_seconds(quick: bool) -> float:
    """Seconds that ``qskd --help`` takes beyond starting python."""
    return _beyond_python([sys.executable, "-m", "qskd", "--help"], quick)


def _beyond_python(command: list[str], quick: bool) -> float:
    def start(words: list[str]) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    bare, full = interleaved([lambda: start([sys.executable, "-c", "pass"]), lambda: start(command)], 3 if quick else 9)
    return full - bare
