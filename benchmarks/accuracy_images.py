"""How much of a difference between methods is that of the validation images: a bootstrap over them, of trained cells.

    python benchmarks/accuracy_images.py --runs runs/accuracy --only bccd d_fine

Seeds of a row share the validation images, so an interval over seeds says nothing of what other images would show.
Here the images are drawn again, with replacement, the same ones for every cell, and the differences of the seeds' mean
AP are taken in each draw. AP is of the detections that a cell keeps: those of its best weights.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import yaml
from accuracy_tables import METHOD

from qskd.errors import QskdError
from qskd.evaluation.kept import KeptDetections
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import DRAWS, Sampled, draw_images, interval
from qskd.reporting.tables import text_table
from qskd.runs import building
from qskd.runs.recorded_data import data_of

Drawn = dict[int, np.ndarray]  # AP by seed: [1 + R], of the split itself and of each draw


def main(arguments: list[str] | None = None) -> int:
    """Print a table of each row."""
    options = _parser().parse_args(arguments)
    rows = sorted({path.parents[3] for path in options.runs.glob("cells/*/*/*/seed*/eval/val_detections.npz")})
    shown = 0
    for row in rows:
        wanted = {row.parent.name, row.name}
        if options.only and not wanted <= set(options.only):
            continue
        found = read_row(row, options.draws)
        if METHOD in found and len(found) > 1:
            print(f"{row.parent.name}, {row.name}\n{table_of(found)}\n")
            shown += 1
    if not shown:
        raise QskdError(f"--runs {options.runs}: no row with `{METHOD}`, another method and the detections of both.")
    return 0


def read_row(row: Path, draws: int = DRAWS) -> dict[str, Drawn]:
    """AP of every cell of a row, on its validation images and on images drawn from them."""
    folders = sorted(path.parents[1] for path in row.glob("*/seed*/eval/val_detections.npz"))
    folders = [folder for folder in folders if folder.name.removeprefix("seed").isdecimal()]
    config = yaml.safe_load((folders[0] / "config.yaml").read_text(encoding="utf-8"))
    index = building.open_split(data_of(config), "val")
    if index is None:
        raise QskdError(f"{folders[0]} was trained without validation images.")
    truth = Truth.of(index.ground_truth())
    times = draw_images(len(truth.image_ids), draws)
    found: dict[str, Drawn] = {}
    for folder in folders:
        kept = KeptDetections.load(folder / "eval" / "val_detections.npz").by_image(truth.class_names)
        sampled = Sampled.of(match(truth, kept), times)
        found.setdefault(folder.parent.name, {})[int(folder.name.removeprefix("seed"))] = sampled.values[:, 0]
    return found


def table_of(found: dict[str, Drawn]) -> str:
    """The difference of ``qskd`` to every other method, over the seeds that both have."""
    head = ["method", "seeds", "AP", f"{METHOD} over this", "± of the images", "95% interval"]
    lines = [head]
    for method, drawn in found.items():
        seeds = sorted(drawn.keys() & found[METHOD].keys())
        mean = np.mean([drawn[seed][0] for seed in drawn])
        line = [method, ", ".join(map(str, seeds)), f"{100 * mean:.1f}"]
        if method != METHOD and seeds:
            gains = np.mean([found[METHOD][seed] - drawn[seed] for seed in seeds], axis=0)
            bounds = interval(gains[1:])
            line += [f"{100 * gains[0]:+.1f}", f"{100 * np.nanstd(gains[1:]):.1f}"]
            line.append("" if bounds is None else f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}")
        lines.append(line + [""] * (len(head) - len(line)))
    return text_table(lines[0], lines[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Differences between methods over draws of the validation images.")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where the grid's cells are")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="a dataset and a pair")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the images")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QskdError as error:
        sys.exit(f"accuracy_images: {error}")
