import re
import xml.etree.ElementTree

import pytest

from qskd.evaluation.error_types import TYPES, Errors
from qskd.reporting.closeup import CloseUp, ModelCloseUp
from qskd.reporting.curves import Style
from qskd.reporting.plots import CLASSES, class_curves, error_bars, overall_curves

STYLES = {"baseline": Style.of(0), "teacher": Style.of(1)}


def model(title="m", precision=(1.0,) * 51 + (0.0,) * 50, **counts):
    errors = Errors(0.5, 3, dict.fromkeys(TYPES, 0) | counts, dict.fromkeys(TYPES, 0.0))
    curves = {iou: {"": precision, "cat": precision, "dog": (None,) * 101} for iou in ("0.5", "0.75")}
    return ModelCloseUp(title, "baseline", "baseline", errors, curves)


def points(svg, colour=STYLES["baseline"].colour):
    path = re.search(rf'<path d="M([^"]*)" fill="none" stroke="{colour}"', svg)
    return [tuple(map(float, point.split())) for point in path[1].split("L")] if path else []


def test_a_curve_goes_through_its_points_and_falls_where_recall_ends():
    (drawn, _) = overall_curves(CloseUp(models=(model(),)), STYLES)
    # Precision 1 up to recall 0.5, 0 from 0.51 on; the axes span x 46 to 343 and y 198 to 8.
    assert points(drawn.svg) == [pytest.approx(one, abs=0.05) for one in ((46, 8), (194.5, 8), (197.5, 198))]


def test_all_classes_have_curves_up_to_a_limit_and_empty_ones_none():
    objects = {"cat": 3, "dog": 0}
    assert [one.title for one in class_curves(CloseUp(models=(model(),), objects=objects), STYLES)] == [
        "cat, IoU 0.5",
        "cat, IoU 0.75",
    ]
    many = {f"c{n}": n for n in range(1, 40)}
    curves = {iou: dict.fromkeys(many, (1.0,) * 101) for iou in ("0.5", "0.75")}
    one = ModelCloseUp("m", "baseline", "baseline", model().errors, curves)
    titles = [drawn.title for drawn in class_curves(CloseUp(models=(one,), objects=many), STYLES)]
    assert len(titles) == 2 * CLASSES
    assert titles[0] == "c39, IoU 0.5"  # most objects first


def test_an_undefined_curve_is_not_drawn():
    (drawn, _) = overall_curves(CloseUp(models=(model(precision=(None,) * 101),)), STYLES)
    assert points(drawn.svg) == []


def test_a_drawing_is_well_formed_and_holds_no_names():
    (drawn, _) = overall_curves(CloseUp(models=(model("<b>evil"),)), STYLES)
    assert xml.etree.ElementTree.fromstring(drawn.svg).tag == "svg"
    assert "evil" not in drawn.svg
    assert drawn.legend[0][0] == "<b>evil"


def test_bars_share_one_scale():
    bars = error_bars(CloseUp(models=(model(missed=3, background=1), model(missed=1, duplicate=1))))
    assert [bar.total for bar in bars] == [4, 2]
    assert {name: width for name, _, _, width in bars[0].parts if width} == {"missed": 75.0, "background": 25.0}
    assert {name: width for name, _, _, width in bars[1].parts if width} == {"missed": 25.0, "duplicate": 25.0}


def test_without_models_there_is_nothing_to_draw():
    assert overall_curves(CloseUp(), STYLES) == class_curves(CloseUp(), STYLES) == error_bars(CloseUp()) == []
    assert error_bars(CloseUp(models=(model(),)))[0].total == 0  # a model without mistakes
