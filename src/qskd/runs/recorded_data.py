"""Where a run's config.yaml says that its data lies; the run may be a stranger's."""

import os
from collections.abc import Mapping
from typing import Any

from qskd.errors import ConfigError, DataError
from qskd.runs.options import SourceOptions

_PLACES = ("data", "val_annotations", "val_images")
_FORM = ("data_format", "box_format", "val_split")
_NAMES = (*_PLACES, *_FORM, "train_annotations", "train_images")


def data_of(config: Mapping[str, Any]) -> SourceOptions:
    """The data of a run, in files here: what a config names is never fetched.

    Raises:
        DataError: the run had its data from the hub, or from a folder that is gone.
    """
    named = {name: config[name] for name in _NAMES if isinstance(config.get(name), str) and config[name]}
    data = named.get("data")
    if data is not None and "val_annotations" not in named and not os.path.exists(os.path.expanduser(data)):
        raise DataError(f"'{data[:120]}' is no folder here, and is not fetched because a run names it.")
    return SourceOptions(**named)


def moved_data(config: Mapping[str, Any], given: Mapping[str, str | os.PathLike[str] | None]) -> SourceOptions | None:
    """Where the data of a run lies now, as its user says; read as the run read it, unless the user says otherwise.

    Args:
        config: of the run.
        given: names of ``SourceOptions`` that are about validation data, and their values; None was not given.

    Returns:
        None where nothing was given: the data is where the run had it.

    Raises:
        ConfigError: an option does not exist, or only the form of data was given, but not where it lies.
    """
    said = {name: os.fspath(value) for name, value in given.items() if value is not None}
    for name in said.keys() - {*_PLACES, *_FORM}:
        raise ConfigError(f"There is no option '{name}'. Data is named by {', '.join((*_PLACES, *_FORM))}.")
    if not said:
        return None
    if not said.keys() & set(_PLACES):
        raise ConfigError(f"--{next(iter(said))} says how to read --data: give --data, too.")
    recorded = {name: config[name] for name in _FORM if isinstance(config.get(name), str)}
    return SourceOptions(**(recorded | said))
