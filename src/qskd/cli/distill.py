"""`qskd distill`."""

from collections.abc import Sequence

from qskd.cli.parsing import parse, show
from qskd.reporting.tables import metrics_line
from qskd.runs.distilling import distill
from qskd.runs.options import DataOptions, MethodOptions, PairOptions
from qskd.trainer import DistillationConfig


def run(arguments: Sequence[str]) -> int:
    """Train a student under a teacher."""
    pair, data, method, config = parse(
        "distill",
        "Train a student under a teacher.",
        (PairOptions, DataOptions, MethodOptions, DistillationConfig),
        arguments,
    )
    result = distill(pair, data, method, config)
    if result.metrics:
        show(f"teacher  {metrics_line(result.summary['teacher']['metrics'])}")
        show(f"student  {metrics_line(result.metrics)}")
    show(f"model: {result.model}")
    return 0
