import numpy as np
import pytest
from PIL import Image

from qskd.reporting.annotated import annotate
from qskd.reporting.pictures import Objects, class_colour, tag_size, text_font

NAMES = tuple("abcdefghijklmnopqrstuvwxyz")


def drawn(size: tuple[int, int], *boxes: tuple[float, ...], ground: str = "white") -> np.ndarray:
    """[h, w, 3], box number i being of class i; better ones first."""
    scores = tuple(0.9 - 0.01 * number for number in range(len(boxes)))
    objects = Objects(tuple(range(len(boxes))), boxes, scores)
    return np.asarray(annotate(Image.new("RGB", size, ground), objects, NAMES)).astype(int)


def coloured(pixels: np.ndarray, label: int) -> np.ndarray:
    return (pixels == np.array(class_colour(label))).all(-1)


def test_a_box_is_where_it_is_and_hollow():
    is_coloured = coloured(drawn((400, 300), (100, 120, 200, 220)), 0)
    rows, columns = np.nonzero(is_coloured[121:])
    assert (columns.min(), columns.max(), rows.max() + 121) == (100, 200, 220)
    assert is_coloured[120, 100:201].all()
    assert is_coloured[120:221, 100].all()
    assert not is_coloured[130:210, 110:190].any()


@pytest.mark.parametrize(("size", "line"), [((64, 64), 2), ((640, 480), 2), ((4000, 3000), 15)])
def test_lines_and_letters_grow_with_the_image(size, line):
    width, height = size
    pixels = drawn(size, (width * 0.25, height * 0.25, width * 0.75, height * 0.75))
    assert pixels.shape == (height, width, 3)
    row = coloured(pixels, 0)[round(height * 0.7)]
    assert row[: width // 2].sum() == pytest.approx(line, abs=1)
    tag = coloured(pixels, 0)[: round(height * 0.25) - 1]
    assert np.nonzero(tag.any(1))[0].size == pytest.approx(max(9, 0.022 * (width * height) ** 0.5) * 1.05, rel=0.25)


def test_every_box_has_its_name_also_where_there_are_many():
    boxes = [(20 + 150 * (i % 5), 40 + 90 * (i // 5), 100 + 150 * (i % 5), 110 + 90 * (i // 5)) for i in range(20)]
    pixels = drawn((800, 420), *boxes)
    for label, (x0, y0, _, _) in enumerate(boxes):
        assert coloured(pixels, label)[y0 - 8, x0 + 2 : x0 + 30].any()


def test_names_of_boxes_on_one_spot_do_not_hide_each_other():
    pixels = drawn((600, 600), *[(200, 200, 400, 400)] * 6)
    width, height = tag_size("a 0.90", text_font(13))
    for label in range(6):
        # Nothing but the letters covers a tag's ground.
        assert coloured(pixels, label).sum() > 0.5 * width * height


def test_the_best_lies_on_top():
    pixels = drawn((300, 300), *[(100, 100, 200, 200)] * 3)
    assert coloured(pixels, 0)[130:190, 200].all()


@pytest.mark.parametrize("box", [(-50, -50, 350, 350), (280, 280, 500, 500), (10, 10, 10, 10), (200, 150, 100, 50)])
def test_boxes_beyond_the_border_or_without_area_can_be_seen(box):
    assert coloured(drawn((300, 300), box), 0).sum() > 50


def test_without_objects_it_is_a_copy():
    image = Image.effect_noise((30, 20), 90).convert("RGB")
    copy = annotate(image, Objects((), (), ()), NAMES)
    assert copy is not image
    assert copy.tobytes() == image.tobytes()


def test_the_image_itself_is_left_alone_and_may_be_of_any_mode():
    image = Image.new("L", (90, 70), 255)
    assert annotate(image, Objects((0,), ((10, 20, 60, 60),), (0.5,)), NAMES).mode == "RGB"
    assert image.getextrema() == (255, 255)
