"""Tiny models with random weights, one of every family, and batches; no file and no hub is touched."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    TableTransformerConfig,
    TableTransformerForObjectDetection,
)

from builders_deformable import tiny_deformable_detr, tiny_rt_detr
from builders_realtime import (
    tiny_d_fine,
    tiny_deimv2,
    tiny_deimv2_dinov3,
    tiny_deimv2_lite,
    tiny_lw_detr,
    tiny_rf_detr,
    tiny_rt_detr_v2,
)
from qskd.data.batch import Batch, Targets

NUM_CLASSES = 5
"""Classes of the tiny models and of ``random_batch``, unless told otherwise."""


def tiny_backbone() -> ResNetConfig:
    """A ResNet of one narrow block a stage: stride 32, 32 channels."""
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )


def tiny_detr(**overrides: Any) -> DetrForObjectDetection:
    """DETR: softmax over classes and no-object."""
    return _build(DetrForObjectDetection, DetrConfig, **({"d_model": 32} | overrides))


def tiny_table_transformer(**overrides: Any) -> TableTransformerForObjectDetection:
    """Table Transformer: DETR with norms before the blocks."""
    return _build(TableTransformerForObjectDetection, TableTransformerConfig, **({"d_model": 32} | overrides))


def tiny_conditional_detr(**overrides: Any) -> ConditionalDetrForObjectDetection:
    """Conditional DETR: sigmoid head, one reference point a query."""
    return _build(ConditionalDetrForObjectDetection, ConditionalDetrConfig, **({"d_model": 32} | overrides))


def tiny_dab_detr(**overrides: Any) -> DabDetrForObjectDetection:
    """DAB-DETR: sigmoid head, anchors refined by every layer."""
    width = overrides.pop("d_model", 32)
    return _build(DabDetrForObjectDetection, DabDetrConfig, **({"hidden_size": width} | overrides))


MODELS: dict[str, Callable[..., Any]] = {
    "detr": tiny_detr,
    "conditional_detr": tiny_conditional_detr,
    "dab-detr": tiny_dab_detr,
    "rt_detr": tiny_rt_detr,
    "deformable_detr": tiny_deformable_detr,
    "deformable_detr-refine": partial(tiny_deformable_detr, refine=True),
    "deformable_detr-two-stage": partial(tiny_deformable_detr, two_stage=True, refine=True),
    "rt_detr_v2": tiny_rt_detr_v2,
    "rt_detr_v2-discrete": partial(tiny_rt_detr_v2, decoder_method="discrete", decoder_offset_scale=0.7),
    "d_fine": tiny_d_fine,
    "deimv2": tiny_deimv2,
    "deimv2-dinov3": tiny_deimv2_dinov3,
    "deimv2-lite": tiny_deimv2_lite,
    "lw_detr": tiny_lw_detr,
    "rf_detr": tiny_rf_detr,
    "table-transformer": tiny_table_transformer,
}
"""What the contract tests of adapters run over: a builder takes overrides of its configuration."""

FAMILY_OF = {name: name.partition("-")[0] if name not in ("dab-detr", "table-transformer") else name for name in MODELS}
"""``config.model_type`` of each of them."""


def size_for(name: str) -> tuple[int, int]:
    """(height, width) of images that a tiny model reads."""
    return (64, 64) if name == "rf_detr" else (64, 96)


def batch_for(name: str, objects: Sequence[int] = (3, 0), **options: Any) -> "Batch":
    """``random_batch`` of a size that one of ``MODELS`` reads."""
    return random_batch([size_for(name)] * len(objects), objects, **options)


def random_batch(
    sizes: Sequence[tuple[int, int]] = ((64, 96), (64, 96)),
    objects: Sequence[int] = (3, 0),
    seed: int = 0,
    *,
    canvas: tuple[int, int] | None = None,
    num_classes: int = NUM_CLASSES,
    padded: bool | None = None,
) -> Batch:
    """Images of random pixels in the upper left of one canvas.

    Args:
        sizes: (height, width) of each image's content, in pixels.
        objects: how many objects each image holds.
        seed: of everything random; an image's pixels depend on the seed and its place in the batch alone.
        canvas: (height, width) of the batch; as small as possible when None.
        num_classes: labels are below it.
        padded: what the host knows of padding.
    """
    height, width = canvas or (max(size[0] for size in sizes), max(size[1] for size in sizes))
    pixels = torch.zeros(len(sizes), 3, height, width)
    labels, boxes = [], []
    for index, ((rows, columns), count) in enumerate(zip(sizes, objects, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        pixels[index, :, :rows, :columns] = torch.rand(3, rows, columns, generator=generator)
        labels.append(torch.randint(num_classes, (count,), generator=generator))
        boxes.append(torch.rand(count, 4, generator=generator) * 0.3 + 0.2)
    return Batch(
        pixels=pixels,
        content=torch.tensor(sizes).reshape(-1, 2),
        targets=Targets.from_lists(labels, boxes),
        image_ids=tuple(range(len(sizes))),
        original_sizes=tuple((rows, columns) for rows, columns in sizes),
        padded=padded,
    )


def image_of(batch: Batch, index: int, *, cropped: bool = False) -> Batch:
    """One image of a batch as a batch of its own, without its padding if ``cropped``."""
    rows, columns = batch.content[index].tolist() if cropped else batch.pixels.shape[-2:]
    count = batch.targets.counts[index]
    return Batch(
        pixels=batch.pixels[index : index + 1, :, :rows, :columns],
        content=batch.content[index : index + 1],
        targets=Targets.from_lists([batch.targets.labels[index, :count]], [batch.targets.boxes[index, :count]]),
        image_ids=batch.image_ids[index : index + 1],
        original_sizes=batch.original_sizes[index : index + 1],
    )


def stop_leaks_from_padding(model: nn.Module) -> nn.Module:
    """The model, changed so that what it computes inside an image cannot depend on the padding beside it.

    In every DETR a convolution beside the padding answers to pixels of the image, and the next one brings
    that back inside; group norms average over padding. Here only the centre of each kernel is left, and no
    group norm, so that whatever still differs is due to masks and boxes.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size[0] // 2, module.kernel_size[1] // 2
            centre = module.weight.data[:, :, rows, columns].clone()
            module.weight.data.zero_()
            module.weight.data[:, :, rows, columns] = centre
        if isinstance(module, nn.GroupNorm):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _build(model_class: Any, config_class: Any, **overrides: Any) -> Any:
    """A small transformer on ``tiny_backbone``, weights of seed 0, in eval mode, everything trainable."""
    attention = overrides.pop("attn_implementation", None)
    settings: dict[str, Any] = {
        "backbone_config": tiny_backbone(),
        "num_labels": NUM_CLASSES,
        "num_queries": 10,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    settings |= overrides
    if "id2label" in overrides:
        settings.pop("num_labels")
    config = config_class(**settings)
    model = model_class._from_config(config, attn_implementation=attention) if attention else model_class(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 1.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
        centre = 1.0 if parameter.ndim == 1 and parameter.data.mean() > 0.5 else 0.0  # scales of norms
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(True)
    return model.eval()
