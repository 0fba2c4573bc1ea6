"""Random weights a detector can be trained from.

Built from its configuration alone, a Hugging Face DETR gets weights meant to be overwritten by a checkpoint:
linear layers with a deviation of 0.01 or 0.02, RT-DETR's batch-norm scales around 0 (its encoder then answers
1e-7 everywhere), backbones frozen at random values. Here layers are drawn as in the papers' own code.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

CLASS_HEAD = re.compile(r"(class_embed(\.\d+)?|class_labels_classifier|enc_score_head)$")
BACKBONE = re.compile(r"(^|\.)(backbone|conv_encoder\.model)\.(?!projector\.)")
"""In a module's name with a point after it: part of the backbone. LW-DETR's projector is none, by its name alone."""
_BOX_HEAD = re.compile(r"(bbox_embed(\.\d+)?|bbox_predictor|enc_bbox_head|pre_bbox_head|reg_conf)\.layers\.\d+$")
_DEFORMABLE_ATTENTION = re.compile(r"MultiscaleDeformableAttention$")
_POSITIONS = ("row_embeddings", "column_embeddings")  # learned ones: uniform, as Hugging Face draws them
SOFTMAX_FAMILIES = frozenset({"detr", "table-transformer"})
_SMALL = -2.0  # width and height before the sigmoid: an eighth of the image
_PRIOR = 0.01  # probability of every class before training, as in the focal loss paper


class TrainableBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that takes the place of a frozen one, under the same state names.

    It counts no batches, so what it saves loads into the frozen layer of the plain Hugging Face model.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args: Any) -> None:
        # The parent would invent a batch counter for states that were saved without metadata.
        nn.Module._load_from_state_dict(self, *args)


@torch.no_grad()
def initialise_detector(model: nn.Module) -> None:
    """Draw every layer outside the backbone anew, as the family's original code does.

    Args:
        model: a Hugging Face DETR for detection; changed in place. Random numbers come from torch's global
            generator.

    Source: the published code of each family. Linear layers and Deformable DETR's projections are Xavier
    uniform, other convolutions and the norms PyTorch's defaults, queries N(0, 1), the last layer of box heads
    0 (not DETR's, whose queries would be alike), D-FINE's gates half open, LW-DETR's reference boxes the
    proposals, class biases log(p / (1 - p)), p = 0.01, for sigmoid heads.
    Departure: RT-DETR's linear layers are Xavier as well, where its code leaves PyTorch's default. Deformable DETR's
    boxes start small by its first head (without refinement all are one); later ones change what the first said, and in
    two stages all do.
    """
    family = str(model.config.model_type)  # type: ignore[union-attr]
    kept: set[int] = set()  # deformable attention is drawn well by Hugging Face
    for name, module in model.named_modules():
        if BACKBONE.search(f"{name}."):
            continue
        if _DEFORMABLE_ATTENTION.search(type(module).__name__):
            kept.update(map(id, module.modules()))
        if id(module) not in kept:
            _draw(name, module, xavier_convolutions=family == "deformable_detr")
    if family not in SOFTMAX_FAMILIES:
        _zero_box_heads(model, small=family == "deformable_detr" and not model.config.two_stage)  # type: ignore[union-attr]
        _zero_gates(model)
        _fill_class_priors(model)


_RESET = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def _draw(name: str, module: nn.Module, *, xavier_convolutions: bool) -> None:
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and xavier_convolutions):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _RESET) and not name.endswith(_POSITIONS):
        module.reset_parameters()


def _zero_box_heads(model: nn.Module, *, small: bool) -> None:
    last: dict[str, nn.Linear] = {}  # the last layer of every head comes last in the order of names
    for name, module in model.named_modules(remove_duplicate=False):
        if _BOX_HEAD.search(name) and isinstance(module, nn.Linear):
            last[name.rpartition(".")[0]] = module
    for layer in last.values():
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for name, layer in last.items():
        if small and name.endswith("bbox_embed.0.layers"):
            layer.bias[2:] = _SMALL


def _zero_gates(model: nn.Module) -> None:
    """D-FINE's gates start half open, LW-DETR's queries at the proposals themselves."""
    for name, module in model.named_modules():
        if name.endswith(("gateway.gate", "reference_point_embed")) and isinstance(module, nn.Linear | nn.Embedding):
            nn.init.zeros_(module.weight)


def _fill_class_priors(model: nn.Module) -> None:
    for name, module in model.named_modules(remove_duplicate=False):
        if CLASS_HEAD.search(name) and isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, class_bias())


def class_bias() -> float:
    """The bias of a sigmoid class head before training: log(p / (1 - p)) with p = 0.01."""
    return math.log(_PRIOR / (1.0 - _PRIOR))


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a Hugging Face DETR, whatever the wrapping of its family."""
    network: Any = model.model
    wrapping = network.conv_encoder if hasattr(network, "conv_encoder") else network.backbone  # DEIMv2's name
    wrapping = getattr(wrapping, "conv_encoder", wrapping)  # DAB-DETR wraps once more
    backbone: nn.Module = wrapping.backbone if hasattr(wrapping, "backbone") else wrapping.model
    return backbone


def thaw_backbone(model: nn.Module) -> None:
    """Let a backbone with random weights learn: train its parameters, and its batch norms as such.

    Hugging Face's DETRs replace the backbone's batch norms by frozen ones and freeze a ResNet's first stages
    (of a Hugging Face ResNet: every stage). Both are right only for pretrained weights.

    Args:
        model: changed in place; its configuration and the names of its state stay as they were.
    """
    backbone = backbone_of(model)
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(module, name, _trainable(child))
    backbone.requires_grad_(True)


def _trainable(frozen: nn.Module) -> TrainableBatchNorm2d:
    weight: Tensor = frozen.weight  # type: ignore[assignment]
    norm = TrainableBatchNorm2d(weight.numel()).to(device=weight.device, dtype=weight.dtype)
    norm.load_state_dict(frozen.state_dict())
    return norm.train(frozen.training)


def freeze_backbone_norms(model: nn.Module) -> int:
    """Let the batch norms of the backbone keep statistics, scales and shifts; how many of them had learnt.

    They work as in evaluation mode whatever the mode of the model is, also in copies of it.
    """
    norms = [module for module in backbone_of(model).modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.requires_grad_(False)
        norm.register_forward_pre_hook(_in_evaluation_mode)
    return len(norms)


def _in_evaluation_mode(norm: nn.Module, _: Any) -> None:
    norm.eval()


def train_backbone(model: nn.Module) -> None:
    """Train every parameter of a pretrained backbone; its frozen batch norms keep their statistics.

    Hugging Face freezes more or less of it, as a model was built from a configuration or loaded and as its ResNet
    is named. DETR's own code leaves the stem and the first stage alone.
    """
    backbone_of(model).requires_grad_(True)
