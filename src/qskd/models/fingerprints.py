"""What tells models from others: their weights, their structure, their configuration."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qskd.models.adapter import DetrAdapter

_PROVENANCE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")  # no part of a model


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's state, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of a model's state: what weights must fit it."""
    rows = sorted(f"{name}|{tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def configuration_fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's configuration, but for where it comes from and what wrote it."""
    config: Any = model.config
    return hashlib.sha256(json.dumps(_without_provenance(config.to_dict()), sort_keys=True).encode()).hexdigest()


def reading_of(adapter: DetrAdapter) -> list[Any]:
    """What beside its weights decides what a model says: its configuration, box frame and pixel normalisation."""
    norm = adapter.pixel_norm
    return [configuration_fingerprint(adapter.model)[:12], adapter.box_frame, [*norm.mean], [*norm.std]]


def _without_provenance(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_provenance(entry) for key, entry in value.items() if key not in _PROVENANCE}
    if isinstance(value, list | tuple):
        return [_without_provenance(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
