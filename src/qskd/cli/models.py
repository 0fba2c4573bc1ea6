"""`qskd models`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qskd.cli.parsing import CommandParser, show
from qskd.errors import ConfigError
from qskd.files import place_for_file, write_whole
from qskd.models.families import FAMILIES, adapter_class
from qskd.models.known import KnownCheckpoint, known_checkpoints
from qskd.reporting.tables import number, text_table
from qskd.runs.suggesting import Suggestions, suggest

_SHOWN = 12  # checkpoints suggested on the console; --json has them all
_BACKBONES = {
    "whole": "the teacher's",
    "part": "the teacher's, in part",
    "random": "random, or --student_backbone_weights",
}


def run(arguments: Sequence[str]) -> int:
    """Families and published checkpoints; with a teacher, students for it."""
    given = _parser().read(arguments)
    if given.json is not None:
        place_for_file(given.json, "--json")
    if given.teacher is not None and given.family is not None:
        raise ConfigError("Give --teacher or --family, not both.")
    if given.teacher is not None:
        found = suggest(given.teacher)
        _show_suggestions(found)
        content = found.as_dict()
    else:
        families = [given.family] if given.family else sorted(FAMILIES)
        rows = [row for row in known_checkpoints() if row.family in families]
        _show_families(families)
        _show_checkpoints(rows)
        content = {"checkpoints": [asdict(row) for row in rows]}
    if given.json is not None:
        write_whole(given.json, json.dumps(content, indent=2) + "\n")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "models",
        "Families that can teach and learn, and their published checkpoints; with --teacher, students.",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="Hub id, folder or configuration: suggest students for it.")
    parser.add_argument("--family", metavar="TYPE", help=f"One family only: {', '.join(sorted(FAMILIES))}.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write everything to.")
    return parser


def _show_families(families: Sequence[str]) -> None:
    rows = []
    for name in families:
        adapter = adapter_class(name)
        loss = "qskd's" if adapter.trains_with == "set_prediction" else "transformers'"
        rows.append([name, loss, "any shape" if adapter.reads_padding else "squares"])
    show(text_table(["family", "detection loss", "images"], rows))


def _show_checkpoints(rows: Sequence[KnownCheckpoint]) -> None:
    sources = list(dict.fromkeys(row.source for row in rows))
    table = [
        [
            row.hub_id,
            row.family,
            "-" if row.parameters is None else f"{row.parameters:g} M",
            "-".join(map(str, row.image_size)),
            "-" if row.ap is None else f"{row.ap:.1f}",
            row.trained_on,
            f"[{sources.index(row.source) + 1}]",
        ]
        for row in rows
    ]
    show("")
    show(text_table(["checkpoint", "family", "parameters", "image size", "AP", "trained on", "source"], table))
    show("")
    show("AP: COCO val2017, as published, not measured by qskd.")
    for position, source in enumerate(sources, start=1):
        show(f"[{position}] {source}")


def _show_suggestions(found: Suggestions) -> None:
    if found.facts is None:
        show(f"teacher: {found.teacher}, a {found.family}")
        show(f"No derived students are shown, since the teacher cannot be built here: {found.reason}")
    else:
        height, width = found.facts.image_size
        show(
            f"teacher: {found.teacher}, a {found.family} of {found.facts.parameters / 1e6:.1f} M parameters, "
            f"{found.facts.gflops:.1f} GFLOPs at {height} x {width}"
        )
        _show_derived(found)
    if found.checkpoints:
        show("")
        show("published checkpoints that are smaller and share a level of memory (--student ID):")
        _show_checkpoints(found.checkpoints[:_SHOWN])


def _show_derived(found: Suggestions) -> None:
    assert found.facts is not None
    if not found.derived:
        show("No smaller student can be derived from it by flags.")
        return
    rows = [
        [
            one.flags,
            f"{one.facts.parameters / 1e6:.1f} M",
            number(one.facts.gflops),
            f"{one.facts.gflops / found.facts.gflops:.0%}",
            _BACKBONES[one.backbone],
        ]
        for one in found.derived
    ]
    show("")
    show("derived from the teacher (flags of qskd distill):")
    show(text_table(["flags", "parameters", "GFLOPs", "of teacher's", "backbone begins with"], rows))
