"""The published configurations, rebuilt from their classes without a file: number of weights, levels, sizes."""

from typing import Any

import pytest
from transformers import (
    DFineConfig,
    LwDetrConfig,
    LwDetrViTConfig,
    RfDetrConfig,
    RTDetrV2Config,
)
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from builders_published import NANO, WIDE, hybrid, on_meta
from qskd.models.adapter import DetrAdapter


def millions(adapter: DetrAdapter) -> float:
    return sum(parameter.numel() for parameter in adapter.model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("expected", "backbone", "settings"),
    [
        (20, "resnet18", {"hidden_expansion": 0.5, "decoder_layers": 3}),
        (31, "resnet34", {"hidden_expansion": 0.5, "decoder_layers": 4}),
        (42, "resnet50", {}),
        (76, "resnet101", WIDE),
    ],
    ids=["S", "M", "L", "X"],
)
def test_rt_detr_v2(expected: int, backbone: str, settings: dict[str, Any]) -> None:
    adapter = on_meta(hybrid(RTDetrV2Config, backbone, **settings))
    assert millions(adapter) == pytest.approx(expected, abs=1)
    assert adapter.strides == (8, 16, 32)
    assert adapter.num_queries == 300


@pytest.mark.parametrize(
    ("expected", "backbone", "settings"),
    [
        (4, "hgnetv2_b0", NANO | {"hidden_expansion": 0.34, "depth_mult": 0.5, "decoder_layers": 3}),
        (10, "hgnetv2_b0", {"hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3}),
        (19, "hgnetv2_b2", {"depth_mult": 0.67, "decoder_layers": 4}),
        (31, "hgnetv2_b4", {}),
        (62, "hgnetv2_b5", WIDE),
    ],
    ids=["N", "S", "M", "L", "X"],
)
def test_d_fine(expected: int, backbone: str, settings: dict[str, Any]) -> None:
    levels = settings.get("num_feature_levels", 3)
    points = {3: [3, 6, 3], 2: [6, 6]}[levels]
    adapter = on_meta(hybrid(DFineConfig, backbone, levels, decoder_n_points=points, **settings))
    assert millions(adapter) == pytest.approx(expected, abs=0.7)
    assert adapter.strides == ((8, 16, 32) if levels == 3 else (16, 32))
    assert adapter.memory_channels == (settings.get("encoder_hidden_dim", 256),) * levels


SIX_LAYERS: dict[str, Any] = {"num_hidden_layers": 6, "window_block_indices": [0, 2, 4], "out_indices": [1, 3, 5]}
TEN_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 10,
    "window_block_indices": [0, 1, 3, 6, 7, 9],
    "out_indices": [2, 4, 5, 9],
}


@pytest.mark.parametrize(
    ("expected", "width", "layers", "settings"),
    [
        (12.1, 192, SIX_LAYERS, {"num_queries": 100}),
        (14.6, 192, TEN_LAYERS, {}),
        (28.2, 384, TEN_LAYERS, {}),
        (46.8, 384, TEN_LAYERS, {"d_model": 384, "projector_scale_factors": [2.0, 0.5]}),
        (118.0, 768, TEN_LAYERS, {"d_model": 384, "projector_scale_factors": [2.0, 0.5]}),
    ],
    ids=["tiny", "small", "medium", "large", "xlarge"],
)
@pytest.mark.filterwarnings("ignore:You'd better set embed_dim")
def test_lw_detr(expected: float, width: int, layers: dict[str, Any], settings: dict[str, Any]) -> None:
    backbone = LwDetrViTConfig(image_size=1024, hidden_size=width, **layers)
    config = LwDetrConfig(num_labels=91, backbone_config=backbone, **({"projector_scale_factors": [1.0]} | settings))
    adapter = on_meta(config)
    assert millions(adapter) == pytest.approx(expected, rel=0.01)  # all 13 groups counted
    assert adapter.strides == ((8, 32) if len(config.projector_scale_factors) == 2 else (16,))
    assert adapter.num_queries == settings.get("num_queries", 300)
    assert 640 % adapter.size_multiple == 0


def test_rf_detr_base() -> None:
    backbone = RfDetrDinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        num_windows=4,
        out_features=["stage2", "stage5", "stage8", "stage11"],
    )
    adapter = on_meta(RfDetrConfig(num_labels=91, backbone_config=backbone))
    assert adapter.strides == (14,)  # shared with no other family, so features cannot be compared with theirs
    assert 560 % adapter.size_multiple == 0
    one_group = millions(adapter) - 12 / 13 * sum(
        parameter.numel() / 1e6
        for name, parameter in adapter.model.named_parameters()
        if "enc_out" in name or "query_feat" in name or "reference_point" in name
    )
    assert one_group == pytest.approx(29, abs=0.5)
