"""Tiny models with random weights, and batches for them; no file and no hub is touched."""

from typing import Any

import torch
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)

from qskd.data.batch import Batch, Targets


def tiny_rt_detr(**overrides: Any) -> RTDetrForObjectDetection:
    """Three decoder layers, three levels, 20 queries, 5 classes."""
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = dict(
        backbone_config=backbone,
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
        num_queries=20,
        num_denoising=8,
    )
    model = RTDetrForObjectDetection(RTDetrConfig(**(settings | overrides)))
    return shake(model)


def tiny_deformable_detr(
    *, two_stage: bool = False, refine: bool = False, **overrides: Any
) -> DeformableDetrForObjectDetection:
    """Three decoder layers, levels of stride 8, 16, 32 and 64, 10 queries, 5 classes."""
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = dict(
        backbone_config=backbone,
        num_labels=5,
        num_queries=10,
        two_stage=two_stage,
        with_box_refine=refine or two_stage,
        two_stage_num_proposals=10,
        num_feature_levels=4,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=3,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        encoder_n_points=2,
        decoder_n_points=3,
        dropout=0.0,
    )
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**(settings | overrides)))
    return shake(model)


def shake(model: Any) -> Any:
    """The model in eval mode, with the heads and sampling Linears that start at zero made random."""
    generator = torch.Generator().manual_seed(0)
    noise = {"sampling_offsets.weight": 0.2, "attention_weights.weight": 0.5, "bbox": 0.3, "class_embed": 0.5}
    for name, parameter in model.named_parameters():
        for part, scale in noise.items():
            if part in name:
                parameter.data += torch.randn(parameter.shape, generator=generator) * scale
    return model.eval()


def random_batch(
    *, counts: tuple[int, ...] = (3, 0), size: tuple[int, int] = (64, 96), seed: int = 0, classes: int = 5
) -> Batch:
    """Images of one size, with that many objects each."""
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(classes, (count,), generator=generator) for count in counts]
    boxes = [torch.rand(count, 4, generator=generator) * 0.3 + 0.2 for count in counts]
    return Batch(
        pixels=torch.rand(len(counts), 3, *size, generator=generator),
        content=torch.tensor([size] * len(counts)),
        targets=Targets.from_lists(labels, boxes),
        image_ids=tuple(range(len(counts))),
        original_sizes=(size,) * len(counts),
    )


def padded_batch(batch: Batch, size: tuple[int, int]) -> Batch:
    """The same images on a larger canvas, black to the right and below."""
    height, width = batch.pixels.shape[-2:]
    pixels = torch.nn.functional.pad(batch.pixels, (0, size[1] - width, 0, size[0] - height))
    return Batch(pixels, batch.content, batch.targets, batch.image_ids, batch.original_sizes)


def joined_batch(*batches: Batch) -> Batch:
    """Batches of one canvas size as one batch; its targets are those of each image."""
    targets = [image for batch in batches for image in batch.targets.as_huggingface()]
    return Batch(
        pixels=torch.cat([batch.pixels for batch in batches]),
        content=torch.cat([batch.content for batch in batches]),
        targets=Targets.from_lists([image["class_labels"] for image in targets], [image["boxes"] for image in targets]),
        image_ids=tuple(range(sum(len(batch) for batch in batches))),
        original_sizes=tuple(size for batch in batches for size in batch.original_sizes),
    )
