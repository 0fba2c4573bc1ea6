"""`qskd eval`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qskd.cli.parsing import parse, show
from qskd.files import place_for_file, write_whole
from qskd.reporting.tables import metrics_line, percent, text_table
from qskd.runs.evaluating import evaluate
from qskd.runs.options import ModelOptions, SourceOptions
from qskd.runs.processes import rank


@dataclass
class EvalOptions:
    """How to measure."""

    split: str = field(default="val", metadata={"help": "Which split of --data: val, test, train."})
    batch_size: int = field(default=8, metadata={"help": "Images at a time."})
    json: str | None = field(default=None, metadata={"help": "File to write all metrics to."})


def run(arguments: Sequence[str]) -> int:
    """Measure a model on a split."""
    model, data, options = parse(
        "eval", "COCO metrics of a model on a split.", (ModelOptions, SourceOptions, EvalOptions), arguments
    )
    if options.json is not None:
        place_for_file(Path(options.json), "--json")
    metrics = evaluate(model, data, split=options.split, batch_size=options.batch_size)
    rows = [[name, percent(value)] for name, value in metrics["per_class"].items()]
    show(text_table(["class", "AP"], rows))
    show(metrics_line(metrics))
    if options.json is not None and rank() == 0:
        write_whole(Path(options.json), json.dumps(metrics, indent=2) + "\n")
    return 0
