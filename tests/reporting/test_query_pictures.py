import numpy as np
import pytest
from PIL import Image

from builders_inspection import scene_and_numbers
from qskd.reporting.pictures import class_colour
from qskd.reporting.query_figures import depth_figures, layer_figures, save_png
from qskd.reporting.query_pictures import SIDE, density_of, draw_close_up, draw_heat, draw_pairs, draw_queries
from qskd.selection.groups import Role


def white(**changes):
    """One object and one query of each role on a white image of 100 x 50."""
    boxes = np.array([[0.5, 0.5, 0.4, 0.6], [0.25, 0.5, 0.2, 0.8], [0.9, 0.1, 0.1, 0.1]])
    facts = dict(
        image=Image.new("RGB", (100, 50), "white"),
        labels=np.array([0]),
        objects=boxes[:1],
        unknown=np.zeros((0, 4)),
        role=np.array([[Role.POSITIVE, Role.HARD_NEGATIVE, Role.EASY_NEGATIVE]]),
        owner=np.array([[0, 0, 0]]),
        giou=np.array([[1.0, 0.1, -0.5]]),
        score=np.array([[0.9, 0.1, 0.0]]),
        best=np.array([[0, 0, 0]]),
        boxes=boxes[None],
        attention=(np.ones((1, 1, 2)),),
        pairs=(),
    )
    return scene_and_numbers(**(facts | changes))[0]


def near(panel, x, y, colour, within=3, tolerance=40):
    """Whether a pixel of about that colour lies beside this place, in fractions of the panel."""
    centre = round(x * panel.width), round(y * panel.height)
    spots = np.asarray(panel)[
        max(centre[1] - within, 0) : centre[1] + within + 1, max(centre[0] - within, 0) : centre[0] + within + 1
    ]
    return bool((abs(spots.astype(int) - colour).max(-1) < tolerance).any())


def test_each_role_is_drawn_where_its_box_is():
    panel = draw_queries(white(), 0)
    colour = class_colour(0)
    assert panel.size == (SIDE, SIDE // 2)
    assert near(panel, 0.3, 0.6, colour)  # left edge of the positive
    assert near(panel, 0.15, 0.5, colour, within=12)  # left edge of the hard negative, dashed
    assert not near(panel, 0.85, 0.1, colour)  # an easy negative has no box
    assert near(panel, 0.9, 0.1, (225, 225, 225), tolerance=60)  # but a dot in its middle
    assert near(panel, 0.9, 0.1, (16, 16, 16), within=6, tolerance=90)


def test_an_object_tints_its_ground():
    panel = np.asarray(draw_queries(white(role=np.zeros((1, 3), int)), 0)).astype(int)
    outside, inside = panel[10, 10], panel[panel.shape[0] // 2 + 20, panel.shape[1] // 2 + 40]
    assert abs(outside - outside.mean()).max() < 4  # grey
    assert inside[0] > inside[2] + 30  # orange


def test_the_density_of_levels_keeps_their_sum_and_shares_cells_out_by_area():
    levels = [np.array([[1.0, 3.0]]), np.array([[2.0]])]
    density = density_of(levels, (2, 4))
    assert density == pytest.approx(np.array([[0.5, 0.5, 1.0, 1.0]] * 2))
    assert density_of(levels, (37, 51)).sum() == pytest.approx(6.0, rel=1e-5)


def test_heat_is_brightest_where_the_sum_is_greatest():
    panel = np.asarray(draw_heat(white(objects=np.zeros((0, 4))), [np.array([[0.0, 1.0]])])).astype(int)
    assert panel[:, -20:].mean() > panel[:, :20].mean() + 30
    nothing = draw_heat(white(), [np.zeros((1, 2))])
    assert nothing.size == (SIDE, SIDE // 2)


def test_a_close_up_holds_the_object_and_its_queries_only():
    scene = white()
    panel = draw_close_up(scene, 0, 0)
    # Both boxes span x 0.15-0.7 and y 0.1-0.9 of 100 x 50 pixels, so the part is wider than high.
    assert panel.width == SIDE
    assert 0.6 < panel.height / panel.width < 0.85
    draw_close_up(white(role=np.zeros((1, 3), int)), 0, 0)  # an object that nobody was matched to


def test_pairs_are_drawn_from_teacher_to_student():
    scene, _ = scene_and_numbers(image=Image.new("RGB", (64, 48), "white"), unknown=np.zeros((0, 4)))
    pairs = scene.pairs[0]
    panel = draw_pairs(scene, pairs)
    start, end = pairs.teacher_boxes[0, :2], pairs.student_boxes[0, :2]
    for share in (0.0, 0.5):
        x, y = start + share * (end - start)
        assert near(panel, x, y, class_colour(0), within=4)


def test_charts_hold_numbers_and_no_names_but_ours():
    _, numbers = scene_and_numbers()
    figures = [*layer_figures(numbers, 0, 0.0), *layer_figures(numbers, 1, None), *depth_figures(numbers)]
    assert len(figures) == 3 + 3 + 3
    for figure in figures:
        assert figure.svg.startswith("<svg")
        assert "currentColor" in figure.svg
        assert "http" not in figure.svg
    assert "cat" not in "".join(figure.svg for figure in figures)


def test_charts_without_objects_are_empty_and_no_error(tmp_path):
    _, numbers = scene_and_numbers(count=0, with_pairs=False)
    assert len(layer_figures(numbers, 0, 0.0)) + len(depth_figures(numbers)) == 6
    save_png(numbers, 0.0, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 1000
