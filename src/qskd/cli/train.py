"""`qskd train`."""

from collections.abc import Sequence

from qskd.cli.parsing import parse, show
from qskd.reporting.tables import metrics_line
from qskd.runs.options import DataOptions, TrainOptions
from qskd.runs.training import train
from qskd.trainer import DistillationConfig


def run(arguments: Sequence[str]) -> int:
    """Train a detector plainly."""
    model, data, config = parse(
        "train",
        "Train a detector plainly: a teacher, or a baseline.",
        (TrainOptions, DataOptions, DistillationConfig),
        arguments,
    )
    result = train(model, data, config)
    if result.metrics:
        show(metrics_line(result.metrics))
    show(f"model: {result.model}")
    return 0
