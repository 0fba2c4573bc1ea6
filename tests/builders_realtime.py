"""Tiny models of the real-time families with random weights; no file and no hub is touched."""

from typing import Any

from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    DINOv3ViTConfig,
    HGNetV2Config,
    LwDetrConfig,
    LwDetrForObjectDetection,
    LwDetrViTConfig,
    RfDetrConfig,
    RfDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from builders_deformable import shake


def _hybrid(**overrides: Any) -> dict[str, Any]:
    """Three decoder layers, levels of stride 8, 16 and 32, 10 queries, 5 classes."""
    settings: dict[str, Any] = dict(
        num_labels=5,
        encoder_hidden_dim=16,
        encoder_in_channels=[12, 16, 20],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=3,
        decoder_attention_heads=2,
        decoder_n_points=3,
        num_queries=10,
        num_denoising=8,
    )
    return settings | overrides


def tiny_hgnet(*out_features: str, stages: int = 4) -> HGNetV2Config:
    """An HGNetV2 of one narrow block a stage."""
    return HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16][:stages],
        stage_mid_channels=[8] * stages,
        stage_out_channels=[8, 12, 16, 20][:stages],
        stage_num_blocks=[1] * stages,
        stage_numb_of_layers=[2] * stages,
        stage_downsample=[False, True, True, True][:stages],
        stage_light_block=[False, False, True, True][:stages],
        stage_kernel_size=[3, 3, 5, 5][:stages],
        depths=[1] * stages,
        hidden_sizes=[8, 12, 16, 20][:stages],
        out_features=list(out_features or ("stage2", "stage3", "stage4")),
    )


def tiny_rt_detr_v2(**overrides: Any) -> RTDetrV2ForObjectDetection:
    """RT-DETRv2 on a narrow ResNet."""
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(**_hybrid(backbone_config=backbone, **overrides))
    return shake(RTDetrV2ForObjectDetection(config))


def tiny_d_fine(**overrides: Any) -> DFineForObjectDetection:
    """D-FINE with its own number of points on every level."""
    settings = dict(backbone_config=tiny_hgnet(), decoder_n_points=[3, 4, 2], max_num_bins=8)
    return shake(DFineForObjectDetection(DFineConfig(**_hybrid(**(settings | overrides)))))


def tiny_deimv2(**overrides: Any) -> Deimv2ForObjectDetection:
    """DEIMv2 on a narrow HGNetV2."""
    settings = dict(backbone_config=tiny_hgnet(), decoder_n_points=[3, 4, 2], max_num_bins=8)
    return shake(Deimv2ForObjectDetection(Deimv2Config(**_hybrid(**(settings | overrides)))))


def tiny_deimv2_dinov3(**overrides: Any) -> Deimv2ForObjectDetection:
    """DEIMv2 on a ViT, with the convolutions that add detail beside it."""
    backbone = DINOv3ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_register_tokens=1,
        patch_size=16,
        image_size=64,
        out_indices=[1, 2, 3],
        apply_layernorm=False,
    )
    settings = dict(backbone_config=backbone, spatial_tuning_adapter_inplanes=4, encoder_has_trailing_conv=False)
    return tiny_deimv2(**(settings | overrides))


def tiny_deimv2_lite(**overrides: Any) -> Deimv2ForObjectDetection:
    """The smallest kind of DEIMv2: one backbone level, two of its own, one box head for all layers."""
    settings = dict(
        backbone_config=tiny_hgnet("stage3", stages=3),
        encoder_type="lite",
        encoder_in_channels=[16],
        decoder_in_channels=[16, 16],
        feat_strides=[16, 32],
        num_feature_levels=2,
        decoder_n_points=[4, 2],
        use_gateway=False,
        share_bbox_head=True,
    )
    return tiny_deimv2(**(settings | overrides))


def _group_queries(**overrides: Any) -> dict[str, Any]:
    """Three decoder layers, 10 queries in each of 3 groups, 5 classes."""
    settings: dict[str, Any] = dict(
        num_labels=5,
        d_model=16,
        c2f_num_blocks=1,
        decoder_ffn_dim=16,
        decoder_layers=3,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=4,
        decoder_n_points=2,
        num_queries=10,
        group_detr=3,
        dropout=0.0,
    )
    return settings | overrides


def tiny_lw_detr(**overrides: Any) -> LwDetrForObjectDetection:
    """LW-DETR with maps of stride 8 and 32."""
    backbone = LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_windows=4,
        window_block_indices=[0, 2],
        out_indices=[2, 3],
    )
    settings = dict(backbone_config=backbone, projector_scale_factors=[2.0, 0.5])
    return shake(LwDetrForObjectDetection(LwDetrConfig(**_group_queries(**(settings | overrides)))))


def tiny_rf_detr(**overrides: Any) -> RfDetrForObjectDetection:
    """RF-DETR with one map of stride 16; it reads square images."""
    backbone = RfDetrDinov2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=64,
        patch_size=16,
        num_windows=2,
        out_features=["stage2", "stage3"],
    )
    settings = dict(backbone_config=backbone)
    return shake(RfDetrForObjectDetection(RfDetrConfig(**_group_queries(**(settings | overrides)))))
