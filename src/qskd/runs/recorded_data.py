"""Where a run's config.yaml says that its data lies; the run may be a stranger's."""

import os
from collections.abc import Mapping
from typing import Any

from qskd.errors import DataError
from qskd.runs.options import SourceOptions

_NAMES = (
    "data",
    "data_format",
    "box_format",
    "val_split",
    "train_annotations",
    "train_images",
    "val_annotations",
    "val_images",
)


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
