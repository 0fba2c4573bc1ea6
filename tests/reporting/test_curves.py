import math
import re
import xml.etree.ElementTree

import pytest

from builders_reports import entries, record
from qskd.reporting.curves import COLOURS, Line, Style, ap_lines, chart, loss_parts, part_lines, series, unique_ids


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("ground", ["#ffffff", "#14171a"])
def test_line_colours_stand_out_in_light_and_dark(colour, ground):
    darker, lighter = sorted([luminance(colour), luminance(ground)])
    assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2.2, 1.4.11


def test_styles_differ_for_two_dozen_lines():
    assert len({(Style.of(n).colour, Style.of(n).dashes) for n in range(24)}) == 24
    assert len({Style.of(n).dashes for n in range(4)}) == 4


def test_series_are_sorted_and_leave_out_what_is_no_number():
    log = [
        {"step": 3, "eval_AP": 0.3},
        {"step": 1, "eval_AP": None},
        {"step": 2, "eval_AP": math.nan},
        {"step": 1, "loss": 4.0},
        {"step": 0, "eval_AP": 0.1},
        {"step": 3, "eval_AP": 0.4},
    ]
    assert series(log, "eval_AP", scale=100) == [(0, 10.0), (3, 40.0)]


def test_parts_of_all_layers_are_added_up():
    entry = {
        "step": 5,
        "loss": 9.0,
        "epoch": 1.0,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
        "loss_bbox": 1.0,
        "loss_bbox_aux_0": 2.0,
        "loss_bbox_dn_1": 4.0,
        "proposal_class": 0.5,
        "lapd_box": 0.25,
        "agfd": math.nan,
    }
    assert loss_parts(entry) == {"loss_bbox": 7.0, "proposal_class": 0.5, "lapd_box": 0.25}
    assert loss_parts({"step": 5, "eval_AP": 0.1}) == {}
    assert loss_parts({"step": 5, "train_loss": 0.1, "train_runtime": 3.0}) == {}


def test_runs_without_evaluations_have_no_ap_line():
    silent, measured = record("a", log=[{"step": 1, "loss": 2.0}]), record("b", log=entries(ap=0.4))
    lines = ap_lines([silent, measured], "baseline", Style.of(0))
    assert [line.points for line in lines] == [[(2, 20.0), (4, 40.0)]]


def test_the_largest_part_comes_first():
    lines = part_lines(record("a", log=entries(small=0.1, large=5.0)))
    assert [line.label for line in lines] == ["large", "small"]


def test_a_chart_is_one_svg_without_addresses_names_or_fixed_size():
    line = Line("$\\broken{ <b>", [(1, 2.0), (2, 1.0)], Style.of(0))
    level = Line("teacher", [(0, 3.0)], Style.of(1))
    drawn = chart("Loss", [line], levels=[level])
    root = xml.etree.ElementTree.fromstring(drawn.svg.replace("xlink:", ""))
    assert root.tag == "svg"
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "//" not in drawn.svg
    assert "broken" not in drawn.svg
    assert "currentColor" in drawn.svg
    assert Style.of(0).colour in drawn.svg
    assert [label for label, _ in drawn.legend] == ["teacher", "$\\broken{ <b>"]


def test_drawing_twice_gives_the_same_bytes():
    lines = [Line("a", [(1, 2.0), (2, 1.0)], Style.of(0))]
    assert chart("Loss", lines).svg == chart("Loss", lines).svg


@pytest.mark.parametrize("points", [[(1, 0.0), (2, 1.0)], [(1, -1.0), (2, 3.0)], [(7, 1e-3)]])
def test_values_that_have_no_logarithm_are_drawn_too(points):
    assert "<svg" in chart("Parts", [Line("a", points, Style.of(0))], logarithmic=True).svg


def test_ids_of_charts_on_one_page_differ():
    svg = chart("Loss", [Line("a", [(1, 2.0), (2, 1.0)], Style.of(0))]).svg
    one, two = unique_ids(svg, "one"), unique_ids(svg, "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', one)) <= ids[0]
