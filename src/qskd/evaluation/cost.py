"""What a detector costs to use: parameters, floating-point operations and latency of an image.

One multiply-add counts as two operations; papers on DETRs often print multiply-adds as "GFLOPs", half of it.
Counted are convolutions, matrix products, attention and deformable sampling; element-wise operations,
normalisation and softmax are not.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter

_BILINEAR = 0  # torch's number of the interpolation mode
_FEWEST_ROUNDS = 5
_OPERATIONS_OF_A_BILINEAR_SAMPLE = 8  # four corners, each one multiply-add


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a detector in eval mode, for images of one size."""

    parameters: int  # of the whole model, frozen ones included
    gflops: float  # 1e9 operations an image, a multiply-add being two
    latency_ms: float  # median milliseconds a batch
    latency_p90_ms: float  # nine of ten batches were faster
    batch_size: int
    image_size: tuple[int, int]  # (height, width) in pixels, padding included
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def cost_of(adapter: DetrAdapter, batch: Batch, *, repeats: int = 20, warmup: int = 3) -> Cost:
    """Parameters, operations and latency of a model on one batch, which lies on the model's device."""
    median, p90 = latency_ms(adapter, batch, repeats, warmup)
    height, width = batch.pixels.shape[-2:]
    return Cost(
        parameters=count_parameters(adapter.model),
        gflops=gflops(adapter, batch),
        latency_ms=median,
        latency_p90_ms=p90,
        batch_size=len(batch),
        image_size=(height, width),
        device=str(batch.pixels.device),
    )


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, frozen ones included, shared ones once; buffers (running means) are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(adapter: DetrAdapter, batch: Batch) -> float:
    """1e9 floating-point operations of one image's forward pass in eval mode, a multiply-add being two.

    Args:
        adapter: the model.
        batch: one image or more of the size in question; the mean over its images is returned.
    """
    with _evaluating(adapter.model):
        _ = adapter.strides  # an adapter may run its backbone once to learn them: no part of a forward pass
        return count_operations(lambda: adapter.read(batch)) / len(batch) / 1e9


def count_operations(run: Callable[[], object]) -> int:
    """Floating-point operations of whatever ``run`` computes with torch.

    ``torch.utils.flop_counter`` counts neither bilinear sampling, which is given a rule here, nor every fused
    attention kernel, so attention is computed by its plain matrix products meanwhile.
    """
    rules = {torch.ops.aten.grid_sampler_2d: _sampling_operations}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def latency_ms(
    run: DetrAdapter | Callable[[Batch], object], batch: Batch, repeats: int = 20, warmup: int = 3
) -> tuple[float, float]:
    """Median and 90th percentile of the milliseconds a batch takes, in eval mode and without gradient.

    Args:
        run: an adapter, or anything else that is called with the batch.
        batch: lies on the device of the model.
        repeats: timed runs, at least 1.
        warmup: runs before, untimed.
    """
    read = run.read if isinstance(run, DetrAdapter) else run
    with _evaluating(run.model if isinstance(run, DetrAdapter) else run):
        for _ in range(warmup):
            read(batch)
        times = [_timed(read, batch) for _ in range(repeats)]
    median, p90 = np.percentile(times, [50, 90])
    return float(median), float(p90)


def interleaved_latency_ms(
    models: Sequence[tuple[DetrAdapter, Batch]], rounds: int = 30, warmup: int = 2, most_seconds: float = 60.0
) -> list[list[float]]:
    """Milliseconds that each model took in each round; in a round every model reads its batch once, in turn.

    What else the machine does meanwhile slows all of them down alike, so that they can be compared even where it is
    busy. Each round begins with another model.

    Args:
        models: each with a batch on its device.
        rounds: timed ones.
        warmup: rounds before, untimed.
        most_seconds: no further round begins after so long, but five are always run (or ``rounds``, if fewer).
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as modes:
        for adapter, _ in models:
            modes.enter_context(_evaluating(adapter.model))
        for _ in range(warmup):
            for adapter, batch in models:
                adapter.read(batch)
        started = time.perf_counter()
        for round_ in range(rounds):
            if round_ >= _FEWEST_ROUNDS and time.perf_counter() - started > most_seconds:
                break
            for turn in range(len(models)):
                at = (round_ + turn) % len(models)
                times[at].append(_timed(models[at][0].read, models[at][1]))
    return times


def _timed(read: Callable[[Batch], object], batch: Batch) -> float:
    """Milliseconds of one call, all that it started on the device included."""
    _wait(batch)
    start = time.perf_counter()
    read(batch)
    _wait(batch)
    return 1e3 * (time.perf_counter() - start)


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Eval mode without gradient, parameters frozen; afterwards all is as it was."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    # Views of trainable parameters require gradient even under no_grad, and trip the counter's hooks.
    trained = [p for module in modules[:1] for p in module.parameters() if p.requires_grad]
    try:
        for module in modules:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def _wait(batch: Batch) -> None:
    """Wait until the device has done all it was given."""
    if batch.pixels.device.type != "cpu":
        torch.accelerator.synchronize(batch.pixels.device)


def _sampling_operations(
    values: tuple[int, ...], grid: tuple[int, ...], mode: int, *_: Any, out_shape: tuple[int, ...], **__: Any
) -> int:
    """Rule for ``grid_sample``: each sampled value reads four corners."""
    samples = int(np.prod(out_shape))
    return samples * _OPERATIONS_OF_A_BILINEAR_SAMPLE if mode == _BILINEAR else 0
