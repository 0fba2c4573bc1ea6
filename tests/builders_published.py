"""Shapes of published checkpoints, built from their classes without a file and without numbers."""

from typing import Any

import torch
from transformers import AutoModelForObjectDetection

from qskd.models.adapter import DetrAdapter
from qskd.models.backbones import backbone_config, channels_of
from qskd.models.families import adapter_class

WIDE = {"encoder_hidden_dim": 384, "decoder_in_channels": [384] * 3, "encoder_ffn_dim": 2048}
NANO = {
    "encoder_hidden_dim": 128,
    "d_model": 128,
    "feat_strides": [16, 32],
    "num_feature_levels": 2,
    "decoder_in_channels": [128, 128],
    "encode_proj_layers": [1],
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
}


def on_meta(config: Any) -> DetrAdapter:
    """The adapter of a model of that shape that holds no numbers."""
    with torch.device("meta"):
        return adapter_class(config.model_type)(AutoModelForObjectDetection.from_config(config))


def hybrid(kind: Any, backbone: str, levels: int = 3, **settings: Any) -> Any:
    chosen = backbone_config(backbone, kind.model_type, levels)
    return kind(backbone_config=chosen, encoder_in_channels=channels_of(chosen), num_labels=80, **settings)
