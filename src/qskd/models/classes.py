"""The layers of a DETR that have one row per class, and how they change with the classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qskd.labels import match_names
from qskd.models.initialising import CLASS_HEAD, SOFTMAX_FAMILIES, class_bias

_LABEL_EMBEDDING = "denoising_class_embed"  # RT-DETR's, of the labels of noisy boxes


def is_class_layer(name: str) -> bool:
    """Whether the module of this name has one row per class (and perhaps one more)."""
    return bool(CLASS_HEAD.search(name)) or name.endswith(_LABEL_EMBEDDING)


def class_rows(size: int, rows: Sequence[int], source_classes: int) -> tuple[int, ...]:
    """The source row of each row of a class layer.

    Args:
        size: rows of the layer; those after the classes (no-object, no label) have their like in the source.
        rows: source class of each class, -1 where there is none.
        source_classes: classes of the source, extra rows not counted.
    """
    return (*rows, *range(source_classes, source_classes + size - len(rows)))


def copy_rows(pairs: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int]) -> list[tuple[Tensor, int]]:
    """Copy rows of source tensors into target tensors.

    Args:
        pairs: (target, source) tensors that agree in all but their first axis; else nothing is copied.
        rows: source row of each of the first target rows; -1 leaves a row as it is.

    Returns:
        Every target with the number of its elements that were copied.
    """
    if any(target.shape[1:] != source.shape[1:] for target, source in pairs):
        return []
    to = [index for index, row in enumerate(rows) if row >= 0]
    of = [rows[index] for index in to]
    for target, source in pairs:
        target[to] = source[of].to(target)
    return [(target, len(to) * target[0].numel()) for target, _ in pairs]


@torch.no_grad()
def change_classes(model: nn.Module, class_names: Sequence[str]) -> tuple[str, ...]:
    """Give a model other classes: rows whose class has the same name stay, the others are drawn anew.

    Args:
        model: a Hugging Face DETR, changed in place (heads, label embedding, configuration).
        class_names: in the order of the new indices.

    Returns:
        The classes that kept their rows.

    Raises:
        LabelMapError: names that cannot be told apart.
    """
    config: Any = model.config
    old_names: dict[int, str] = {int(key): name for key, name in config.id2label.items()}
    rows = match_names(old_names, class_names)
    bias = 0.0 if config.model_type in SOFTMAX_FAMILIES else class_bias()
    renewed: dict[nn.Parameter, nn.Parameter] = {}  # by what they replace, so that shared ones stay shared
    for name, module in model.named_modules(remove_duplicate=False):
        if not is_class_layer(name):
            continue
        for key, old in list(module.named_parameters(recurse=False)):
            if old not in renewed:
                new = _renewed(old, rows, len(old_names), bias)
                renewed |= {old: new, new: new}  # a module with two names comes by twice
            setattr(module, key, renewed[old])
        _declare_size(module)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    return tuple(name for name, row in zip(class_names, rows, strict=True) if row >= 0)


def _renewed(old: nn.Parameter, rows: Sequence[int], old_classes: int, bias: float) -> nn.Parameter:
    extra = old.shape[0] - old_classes
    new = old.new_full((len(rows) + extra, *old.shape[1:]), bias)
    if old.dim() > 1:
        nn.init.xavier_uniform_(new)
    copy_rows([(new, old)], class_rows(len(new), rows, old_classes))
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _declare_size(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.out_features = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings = module.weight.shape[0]
        if module.padding_idx is not None:
            module.padding_idx = module.num_embeddings - 1  # RT-DETR's "no label", always the last
