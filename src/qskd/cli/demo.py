"""`qskd demo`."""

from collections.abc import Sequence

from qskd.cli.parsing import parse, show
from qskd.runs.demo import DemoOptions, demo


def run(arguments: Sequence[str]) -> int:
    """Run the whole job on drawn scenes."""
    (options,) = parse("demo", "The whole job on drawn scenes, in a few minutes.", (DemoOptions,), arguments)
    comparison = demo(options)
    show(comparison.table)
    return 0
