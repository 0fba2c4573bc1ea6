"""Every layout of every format holds the same images, classes and boxes."""

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import builders_formats as formats
from builders_formats import CLASSES, PICTURES, Layout, expected, found
from builders_layouts import LAYOUTS
from qskd.data.batch import collate
from qskd.data.dataset import DetectionDataset
from qskd.data.formats.hub import HubSource
from qskd.data.formats.layout import Source
from qskd.data.images import check_image
from qskd.data.sources import open_source
from qskd.data.transforms import ImageSize, build_transform

TOLERANCE = 1e-6  # pixels: fractions of YOLO are written in full, so only their rounding differs


def opened(layout: Layout, folder: Path) -> Source:
    source = open_source(layout.write(folder))
    return source.with_boxes(layout.box_format) if isinstance(source, HubSource) else source


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_layout_holds_the_same_images_classes_and_boxes(layout: Layout, tmp_path: Path) -> None:
    source = opened(layout, tmp_path / "data")
    assert source.format == layout.format
    assert source.splits == layout.splits
    for split in layout.splits:
        index = source.load(split)
        assert index.class_names == layout.class_names
        wanted, got = expected(split, layout.class_names), found(index)
        if layout.format == "hf":  # whose images have no names, but keep their order where it is not a listing's
            assert len(got) == len(wanted)
            wanted = {str(at): value for at, value in enumerate(sorted(wanted.values()))}
            got = {str(at): value for at, value in enumerate(sorted(got.values()))}
        assert got.keys() == wanted.keys()
        for name, (height, width, objects) in wanted.items():
            assert got[name][:2] == (height, width)
            assert [kind for kind, _ in got[name][2]] == [kind for kind, _ in objects]
            for (_, mine), (_, theirs) in zip(got[name][2], objects, strict=True):
                assert mine == pytest.approx(theirs, abs=TOLERANCE)
        for record in index.images:
            check_image(record)


def test_there_are_layouts_of_every_format() -> None:
    assert {layout.format for layout in LAYOUTS.values()} == {"coco", "yolo", "voc", "hf"}
    assert len(LAYOUTS) >= 70
    assert set(PICTURES) == {"train", "val", "test"}
    assert len(CLASSES) == 3
    assert formats.ROBOFLOW["val"] == "valid"


@pytest.mark.parametrize("name", ["coco-roboflow", "yolo-roboflow", "voc-roboflow", "hf-lists", "hf-image folder"])
def test_workers_read_the_pixels_of_every_format(name: str, tmp_path: Path) -> None:
    index = opened(LAYOUTS[name], tmp_path / "data").load("train")
    dataset = DetectionDataset(index, build_transform(ImageSize(square=32), train=False))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate)
    alone = [dataset[at] for at in range(len(dataset))]
    together = [batch for batch in loader]
    assert sum(len(batch.image_ids) for batch in together) == 4
    assert [sample.image_id for sample in alone] == [int(one) for batch in together for one in batch.image_ids]
