"""Differences over draws of the validation images."""

import numpy as np
import pytest
import yaml

from qskd.data.sources import open_source
from qskd.errors import QskdError
from qskd.evaluation.coco_map import EvaluatorState
from qskd.evaluation.kept import KeptDetections, images_digest


def keep(folder, scenes, leaves_out):
    """A cell whose model finds every object, save those of some images."""
    index = open_source(scenes).load("val")
    rows, counts = [], []
    for image in range(len(index)):
        found = 0 if image in leaves_out else len(index.labels(image))
        boxes, labels = index.boxes(image)[:found], index.labels(image)[:found]
        rows += [[0.9, label, *box] for label, box in zip(labels, boxes, strict=True)]
        counts.append(found)
    state = EvaluatorState(index.images.ids, np.array(counts), np.array(rows, dtype=np.float32))
    digest = images_digest(index.images.ids, index.images.file_names)
    KeptDetections(state, index.class_names, digest).save(folder / "eval" / "val_detections.npz")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": str(scenes)}))
    return len(index)


@pytest.fixture
def runs(tmp_path, scenes):
    row = tmp_path / "cells" / "drawn" / "pair"
    for seed in (0, 1):
        keep(row / "qskd" / f"seed{seed}", scenes, ())
        keep(row / "same" / f"seed{seed}", scenes, ())
    keep(row / "worse" / "seed1", scenes, (0, 1))
    keep(row / "qskd" / "seed0.old1", scenes, (0, 1, 2))  # moved aside
    return tmp_path


def lines(text):
    return {line.split()[0]: line.split() for line in text.splitlines() if line and not line.startswith("-")}


def test_what_finds_the_same_differs_by_nothing_and_what_lacks_images_by_what_they_hold(parts, runs, capsys):
    assert parts["images"].main(["--runs", str(runs), "--draws", "50"]) == 0
    found = lines(capsys.readouterr().out)
    assert found["qskd"][-1] == "100.0"
    assert found["same"][1:] == ["0,", "1", "100.0", "+0.0", "0.0", "+0.0", "to", "+0.0"]
    worse = found["worse"]
    assert worse[1] == "1"
    difference, spread, low, high = (float(worse[at]) for at in (3, 4, 5, 7))
    assert difference == pytest.approx(100.0 - float(worse[2]), abs=0.11)
    assert spread > 1.0, "two of six images hold all of the difference"
    assert low < difference < high
    assert low >= 0.0


def test_a_row_may_be_chosen_and_one_without_both_is_an_error(parts, runs, capsys):
    assert parts["images"].main(["--runs", str(runs), "--only", "drawn", "pair", "--draws", "5"]) == 0
    with pytest.raises(QskdError, match="no row with `qskd`"):
        parts["images"].main(["--runs", str(runs), "--only", "drawn", "other"])
    capsys.readouterr()
