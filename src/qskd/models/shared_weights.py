"""Weights that a model has under several names, and a file under one of them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

_FILE = "model.safetensors"


def state_without_copies(model: Any) -> dict[str, Tensor]:
    """A model's state with shared weights under the name that ``from_pretrained`` reads them by.

    Left to itself, transformers keeps any of their names when it saves.
    """
    state: dict[str, Tensor] = model.state_dict()
    copies = {name for name, origin in model.all_tied_weights_keys.items() if origin in state}
    return {name: value for name, value in state.items() if name not in copies}


@torch.no_grad()
def restore_shared_weights(model: Any, source: str) -> None:
    """Fill shared weights that a file holds under another name than ``from_pretrained`` reads them by.

    It takes them for present, warns of nothing and leaves them random: transformers saves the one box head of
    all layers of DEIMv2's smallest models as that of the last, and looks for the first layer's.

    Args:
        model: loaded from ``source``; changed in place.
        source: a folder or a hub id whose files are there already.
    """
    path = _weights_file(source)
    names: dict[str, str] = model.all_tied_weights_keys
    if path is None or not names:
        return
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        found = {origin: name for name, origin in names.items() if origin not in there and name in there}
        for origin, name in found.items():
            model.get_parameter_or_buffer(origin).copy_(file.get_tensor(name))


@torch.no_grad()
def give_own_memory(model: nn.Module) -> None:
    """Copy the parameters that are parts of a larger tensor, so that they can be saved one by one.

    transformers makes an RF-DETR's query, key and value weights from one tensor of the file, and leaves them in it.
    """
    for parameter in model.parameters():
        if parameter.untyped_storage().nbytes() > parameter.nbytes:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _weights_file(source: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / _FILE
        return path if path.is_file() else None
    cached = transformers.utils.cached_file(
        source,
        _FILE,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(cached) if cached else None
