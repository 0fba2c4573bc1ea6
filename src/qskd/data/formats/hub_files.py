"""Which files a Hugging Face dataset is made of: those of its own folder, whatever its descriptions name.

The library obeys a README, a ``state.json`` and the rows of a table where they name files elsewhere, or addresses. A
folder is listed here instead, and what the library would open is looked at before.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qskd.data.images import IMAGE_SUFFIXES
from qskd.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of save_to_disk
_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside images


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether a file lies in a folder when links are followed, or in the caches of the hub, whose files are links."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(folder)) or is_cached(real)


def is_cached(path: str | Path) -> bool:
    """Whether a file lies where the library or the hub's client keeps what was downloaded."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    real = Path(os.path.realpath(path))
    places = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return any(real.is_relative_to(os.path.realpath(place)) for place in places)


def listed(folder: str) -> tuple[str, Any]:
    """Kind of a folder, "parquet" or "imagefolder", and its files by split, which the library names by its rules.

    Raises:
        DataError: a file lies elsewhere, or is named like an address.
        Exception: the library finds nothing.
    """
    from datasets.data_files import DataFilesDict, DataFilesList, get_data_patterns

    found = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)
    names = [file for files in found.values() for file in files]
    tables, images = set(filter(_is_table, names)), set(filter(_is_image, names))
    kind = "parquet" if len(tables) >= len(images) else "imagefolder"  # what there is more of, as the library has it
    read = tables if kind == "parquet" else set(filter(_is_facts, names))
    _stay(folder, read)
    parts = read if kind == "parquet" else read | images
    chosen = {
        split: DataFilesList([file for file in files if file in parts], files.origin_metadata)
        for split, files in found.items()
    }
    return kind, DataFilesDict({split: files for split, files in chosen.items() if files})


def check_saved(folder: str) -> None:
    """Look at the names of files in what ``save_to_disk`` wrote.

    Raises:
        DataError: one leads out of the folder.
        Exception: the description is none.
    """
    place = Path(folder)
    description = place / _SPLITS
    parts = [place / name for name in _json(description)["splits"]] if description.is_file() else [place]
    states = [part / _STATE for part in parts]
    named = (state.parent / entry["filename"] for state in states for entry in _json(state)["_data_files"])
    _stay(folder, (*states, *named))


def check_hub(name: str, files: Iterable[str]) -> None:
    """Look at the files that a dataset of the hub is said to be made of.

    Raises:
        DataError: one lies neither on the hub nor where its files are kept here.
    """
    for file in files:
        if not file.startswith("hf://") and ("://" in file or not is_cached(file)):
            raise DataError(f"'{name}' names '{file[:120]}', which is no file of the hub. It is not read.")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _is_table(file: str) -> bool:
    return file.endswith(".parquet") and not _is_facts(file)


def _is_facts(file: str) -> bool:
    return os.path.basename(file) in _TABLES


def _is_image(file: str) -> bool:
    return file.lower().endswith(tuple(IMAGE_SUFFIXES))


def _stay(folder: str, files: Iterable[str | Path]) -> None:
    for file in files:
        if "::" in str(file) or not is_below(file, folder):
            raise DataError(f"{folder}: '{str(file)[:120]}' is outside of it, and not read. Copy it into the folder.")
