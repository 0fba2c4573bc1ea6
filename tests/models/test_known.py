"""The table of published checkpoints, and that the docs tell the same."""

from pathlib import Path

import pytest
from transformers import DFineConfig, RTDetrConfig, RTDetrV2Config

from builders_published import NANO, hybrid, on_meta
from qskd.models.families import FAMILIES
from qskd.models.known import known_checkpoints

DOCS = Path(__file__).parents[2] / "docs" / "families"


def test_every_family_has_checkpoints_and_every_checkpoint_a_family():
    assert {row.family for row in known_checkpoints()} == set(FAMILIES)
    names = [row.hub_id for row in known_checkpoints()]
    assert len(names) == len(set(names))
    assert all(name.count("/") == 1 for name in names)


def test_numbers_are_in_their_ranges():
    for row in known_checkpoints():
        assert row.parameters is None or 0.1 < row.parameters < 1000
        assert row.ap is None or 10 < row.ap < 70
        assert len(row.image_size) in (1, 2)
        assert all(128 <= edge <= 2000 for edge in row.image_size)
        assert row.strides
        assert row.source
        assert row.ap is None or "COCO" in row.trained_on


@pytest.mark.parametrize(
    ("hub_id", "config"),
    [
        ("PekingU/rtdetr_r18vd", hybrid(RTDetrConfig, "resnet18", hidden_expansion=0.5, decoder_layers=3)),
        ("PekingU/rtdetr_v2_r50vd", hybrid(RTDetrV2Config, "resnet50")),
        (
            "ustc-community/dfine-nano-coco",
            hybrid(
                DFineConfig,
                "hgnetv2_b0",
                2,
                decoder_n_points=[6, 6],
                hidden_expansion=0.34,
                depth_mult=0.5,
                decoder_layers=3,
                **NANO,
            ),
        ),
    ],
)
def test_the_table_agrees_with_the_shapes(hub_id, config):
    row = next(row for row in known_checkpoints() if row.hub_id == hub_id)
    adapter = on_meta(config)
    assert sum(parameter.numel() for parameter in adapter.model.parameters()) / 1e6 == pytest.approx(
        row.parameters, rel=0.1
    )
    assert adapter.strides == row.strides
    assert all(edge % adapter.size_multiple == 0 for edge in row.image_size)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_page_of_the_docs_tells_the_same(family):
    page = (DOCS / f"{family.replace('-', '_')}.md").read_text(encoding="utf-8")
    for row in (row for row in known_checkpoints() if row.family == family):
        parameters = "-" if row.parameters is None else f"{row.parameters:g} M"
        size = "-".join(map(str, row.image_size))
        ap = "-" if row.ap is None else f"{row.ap:.1f}"
        assert f"| `{row.hub_id}` | {parameters} | {size} | {ap} | {row.trained_on} |" in page
