"""`qskd demo`."""

from collections.abc import Sequence
from pathlib import Path

from qskd.cli.parsing import parse, show
from qskd.runs.demo import DemoOptions, demo
from qskd.runs.folder import RunFolder


def run(arguments: Sequence[str]) -> int:
    """Run the whole job on drawn scenes."""
    (options,) = parse("demo", "The whole job on drawn scenes, in a few minutes.", (DemoOptions,), arguments)
    comparison = demo(options)
    show(comparison.table)
    show(f"report: {comparison.html}")
    if comparison.pictures is not None:
        show(f"detections: {comparison.pictures}")
    show(f"distilled student: {RunFolder(Path(options.output_dir) / 'distilled').model()}")
    return 0
