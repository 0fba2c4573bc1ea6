"""Temporary hooks: how an adapter listens to a model during one forward pass without changing it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[list[dict[str, Any]]]:
    """Arguments, by name, of every call of ``modules`` inside the block, in the order of the calls."""
    calls: list[dict[str, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(signature(module.forward).parameters, args, strict=False)) | kwargs)

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """What each of ``modules`` returned when it last ran inside the block."""
    outputs: dict[nn.Module, Any] = {}

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def float32_outputs(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside autocast, hand on what ``modules`` say as float32; outside it, change nothing.

    Hugging Face's models compute anchors, reference points and boxes in whatever type flows in, and the eight
    bits of bfloat16's mantissa are whole pixels.
    """

    def widen(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.float()

    listened = modules if torch.is_autocast_enabled(device.type) else ()
    handles = [module.register_forward_hook(widen) for module in listened]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training_flag(module: nn.Module) -> Iterator[None]:
    """Inside the block ``module`` itself, not what it is made of, takes itself to be in training."""
    before = module.training
    module.training = True
    try:
        yield
    finally:
        module.training = before
