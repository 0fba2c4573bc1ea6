"""Links in a run folder: another's may lead a run to files that are none of its own."""

from pathlib import Path

from qskd.errors import ConfigError

_WRITTEN = ("best", "checkpoints", "eval", "last", "metrics.jsonl", "runs")  # written into, not replaced at once


def refuse_links(run_folder: Path) -> None:
    """Look whether a run would write, or remove, through a link.

    Raises:
        ConfigError: it would; says what to do.
    """
    links = [run_folder / name for name in _WRITTEN if (run_folder / name).is_symlink()]
    if links:
        raise ConfigError(
            f"{links[0]} is a link, and a run would write to where it leads. Remove it; to keep a run on another disk, "
            "link or name the run folder as a whole."
        )
