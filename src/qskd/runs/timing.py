"""The latencies of all models of a report, measured in turn on the machine that makes it."""

from collections.abc import Sequence

import torch

from qskd.data.batch import Batch
from qskd.errors import QskdError
from qskd.evaluation.cost import interleaved_latency_ms
from qskd.models.adapter import DetrAdapter
from qskd.reporting.speed import Latency, SideBySide
from qskd.runs.sitting import Sitter
from qskd.runs.training import one_image


def time_side_by_side(sitters: Sequence[Sitter], notes: list[str]) -> SideBySide | None:
    """Latency of one image for the shown models that can be opened; None where none can.

    Args:
        sitters: the models; all of them are in memory at once.
        notes: for the reader of the report; added to.
    """
    opened = []
    for sitter in sitters:
        if not sitter.is_shown:
            continue
        try:
            adapter, batch = _ready(sitter)
        except (QskdError, RuntimeError, ValueError) as error:  # torch's own too: out of memory, image too small
            notes.append(f"No latency of {sitter.shown.title}: {error}")
            continue
        opened.append((sitter.shown, adapter, batch))
    if not opened:
        return None
    times = interleaved_latency_ms([(adapter, batch) for _, adapter, batch in opened])
    latencies = []
    for (shown, _, batch), taken in zip(opened, times, strict=True):
        height, width = batch.pixels.shape[-2:]
        latencies.append(Latency.of(shown.label, shown.role, taken, (height, width)))
    device = opened[0][2].pixels.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return SideBySide(tuple(latencies), len(times[0]), name, torch.get_num_threads())


def _ready(sitter: Sitter) -> tuple[DetrAdapter, Batch]:
    """A model and an image that it has read once.

    Raises:
        QskdError: there is no such model.
        RuntimeError, ValueError: it cannot read a single image of its size.
    """
    adapter = sitter.open()
    adapter.model.eval()
    batch = one_image(sitter.size).to(next(adapter.model.parameters()).device)
    with torch.no_grad():  # weights that are made in inference mode could not be learnt from any more
        adapter.read(batch)
    return adapter, batch
