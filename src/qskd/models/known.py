"""Published checkpoints of the families, as their authors describe them."""

import csv
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """One row of ``assets/checkpoints.csv``; its numbers are what the source says, nothing that qskd measured."""

    family: str  # config.model_type
    hub_id: str
    parameters: float | None  # millions; None where nobody printed it
    image_size: tuple[int, ...]  # pixels: (square,) or (shortest edge, longest edge)
    strides: tuple[int, ...]  # pixels per cell of the memory, per level
    ap: float | None  # percent, COCO val2017; None for other data
    trained_on: str
    source: str  # where the numbers are printed


@cache
def known_checkpoints() -> tuple[KnownCheckpoint, ...]:
    """All of them, by family and then from small to large."""
    text = (files("qskd") / "assets" / "checkpoints.csv").read_text(encoding="utf-8")
    rows = [_from_row(row) for row in csv.DictReader(text.splitlines())]
    return tuple(sorted(rows, key=lambda row: (row.family, row.parameters or math.inf, row.ap or 0.0, row.hub_id)))


def _from_row(row: dict[str, str]) -> KnownCheckpoint:
    return KnownCheckpoint(
        family=row["family"],
        hub_id=row["hub_id"],
        parameters=float(row["parameters_millions"]) if row["parameters_millions"] else None,
        image_size=tuple(int(edge) for edge in row["image_size"].split("-")),
        strides=tuple(int(stride) for stride in row["strides"].split()),
        ap=float(row["ap"]) if row["ap"] else None,
        trained_on=row["trained_on"],
        source=row["source"],
    )
