"""Where a run's config.yaml says that its data lies; the run may be a stranger's."""

import os
from collections.abc import Mapping
from typing import Any

from qskd.errors import ConfigError, DataError
from qskd.runs.options import SourceOptions

_PLACES = ("data", "val_annotations", "val_images")
_FORM = ("data_format", "box_format", "val_split")
MOVED = (*_PLACES, *_FORM)  # what a user can say of data that is not where it was
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


def moved_data(config: Mapping[str, Any], given: Mapping[str, Any]) -> SourceOptions | None:
    """Where the data of a run lies now, as its user says; read as the run read it, unless the user says otherwise.

    Args:
        config: of the run.
        given: values of ``MOVED`` by name; None was not given.

    Returns:
        None where nothing was given: the data is where the run had it.

    Raises:
        ConfigError: a value is no text or path, or the form of data was given, but not where it lies.
    """
    for name, value in given.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise ConfigError(f"{name} is {value!r}; give a text or a path.")
    said = {name: os.fspath(value) for name, value in given.items() if value is not None}
    if not said:
        return None
    form = [name for name in said if name in _FORM]
    if form and "data" not in said:
        raise ConfigError(f"--{form[0]} says how to read --data: give --data, too.")
    recorded = {name: config[name] for name in _FORM if isinstance(config.get(name), str)}
    return SourceOptions(**(recorded | said))
