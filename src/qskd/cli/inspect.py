"""`qskd inspect`."""

from collections.abc import Sequence

from qskd.cli.parsing import parse, show
from qskd.reporting.query_words import sentences
from qskd.runs.inspecting import InspectOptions, inspect
from qskd.runs.options import MethodOptions, PairOptions, SourceOptions


def run(arguments: Sequence[str]) -> int:
    """Draw and count a teacher's queries."""
    kinds = (InspectOptions, PairOptions, SourceOptions, MethodOptions)
    made = inspect(*parse("inspect", "A teacher's queries, by role, drawn and counted.", kinds, arguments))
    for line in sentences(made.numbers):
        show(line)
    show(f"page: {made.files.html}")
    return 0
