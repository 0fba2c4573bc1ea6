"""One pass at a time writes to a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qskd.errors import ConfigError

LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A pass within. The claim ends with the process, however that ends; it is none where files cannot be locked.

    Raises:
        ConfigError: another pass is writing to the folder, nobody can, or a link lies where qskd would write.
    """
    if (folder / LOCK).is_symlink():
        raise ConfigError(f"{folder / LOCK} is a link; qskd writes no file through one. Remove it.")
    with _opened(folder / LOCK) as file:
        if not _locked(file):
            raise ConfigError(
                f"Another `qskd cache` is writing to {folder}. Wait for it, or give another --output_dir."
            )
        yield


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path.parent} cannot be written to ({error.strerror}). Give another --output_dir, or change who may "
            "write there."
        ) from error


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
