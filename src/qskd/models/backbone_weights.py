"""Pretrained weights for the backbone of a detector."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from qskd.errors import CheckpointError
from qskd.models.adapter import PixelNorm
from qskd.models.families import FAMILIES
from qskd.models.initialising import backbone_of
from qskd.models.loading import load_model
from qskd.models.processors import given_pixel_norm
from qskd.models.timm_backbones import WRAPPED, WRAPPER, pretrained_state, weightless

_PROBE = 64  # pixels of the side of an image that is only sent through
_LONGEST_REASON = 300  # characters quoted of somebody else's error


def load_backbone_weights(model: nn.Module, source: str, pixels: PixelNorm) -> None:
    """Fill a detector's backbone from a pretrained one, which sees the detector's pixels as those of its training.

    Args:
        model: changed in place.
        source: folder or hub id of a Hugging Face backbone of the same architecture, of an image classifier
            with such a backbone (also one of timm's), or of a detector, whose backbone is taken.
        pixels: the normalisation that the detector applies.

    Raises:
        CheckpointError: it cannot be read, is of another architecture, or cannot be brought to these pixels.
    """
    target = backbone_of(model)
    state, trained = _pretrained(source, model)
    wrapped = any(name.startswith(WRAPPED) for name in target.state_dict())  # timm's, by the families that keep it so
    given, own = _bare(state), _bare(target.state_dict())
    unlike = sorted(name for name in own if name not in given or given[name].shape != own[name].shape)
    if unlike:
        raise CheckpointError(
            f"{source} is a backbone of another architecture: {len(unlike)} of {len(own)} weights are absent "
            f"or of another shape, for example {unlike[0]}. Name the backbone these weights belong to."
        )
    target.load_state_dict({f"{WRAPPED}{name}" if wrapped else name: given[name] for name in own}, strict=False)
    if trained is not None and not adapt_to_pixels(target, trained, pixels):
        raise CheckpointError(
            f"{source} was trained with pixels of mean {trained.mean} and deviation {trained.std}, this detector has "
            f"{pixels.mean} and {pixels.std}, and its first layer cannot take up the difference. Take other weights."
        )


def _pretrained(source: str, model: nn.Module) -> tuple[dict[str, Tensor], PixelNorm | None]:
    """State and normalisation of a pretrained backbone; None where nobody says which pixels it was trained with."""
    settings: Any = model.config.backbone_config  # type: ignore[union-attr]
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type in FAMILIES:
            detector = load_model(source)
            return backbone_of(detector.model).state_dict(), detector.pixel_norm
        if config.model_type == WRAPPER:
            return pretrained_state(source, config, settings)
        config.set_output_features_output_indices(list(settings.out_features), None)
        backbone, info = type(weightless(config)).from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        advice = "" if Path(source).is_dir() else " Without a network, give a folder."
        raise CheckpointError(f"No backbone weights in '{source}': {reason}{advice}") from error
    missing = [name for name in info["missing_keys"] if not name.endswith("num_batches_tracked")]
    if missing or info["mismatched_keys"]:
        raise CheckpointError(f"{source} lacks weights of its backbone, for example {sorted(missing)[:3]}.")
    return backbone.state_dict(), given_pixel_norm(source)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without batch counters, and under timm's own names where transformers wraps one of timm's models."""
    return {
        name.removeprefix(WRAPPED): value for name, value in state.items() if not name.endswith("num_batches_tracked")
    }


@torch.no_grad()
def adapt_to_pixels(backbone: nn.Module, trained: PixelNorm, given: PixelNorm) -> bool:
    """Let a pretrained backbone see pixels of another normalisation as it saw those of its training.

    Its first convolution takes the factor, and the layer after it the shift. The zeros around the image stay zeros, so
    what is computed beside its edges changes a little.

    Args:
        backbone: changed in place; its first convolution has a bias, or a batch norm behind it.
        trained: the normalisation that its weights were trained with.
        given: the one that the detector applies.

    Returns:
        Whether it sees the same pixels now; False where nothing follows that could take the shift.
    """
    if trained == given:
        return True
    first = _first_layers(backbone)
    if first is None:
        return False
    convolution, after = first
    factor, shift = (torch.tensor(values, dtype=torch.float64) for values in _change(trained, given))
    weight: Tensor = convolution.weight.double()
    offset = (weight * shift[:, None, None]).sum((1, 2, 3))
    if convolution.bias is not None:
        convolution.bias += offset
    elif hasattr(after, "running_mean"):
        after.running_mean -= offset
    else:
        return False
    convolution.weight.copy_(weight * factor[:, None, None])
    return True


def _first_layers(backbone: nn.Module) -> tuple[Any, Any] | None:
    """The one convolution that sees the image, and the layer that works next; None where several see it, or others do.

    Branches that see the same image would each have to be changed, and standardised weights undo a factor.
    """
    image = torch.zeros(1, 3, _PROBE, _PROBE)
    seen: list[tuple[nn.Module, bool]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append((layer, bool(inputs) and inputs[0] is image))

    layers = [layer for layer in backbone.modules() if not list(layer.children()) or hasattr(layer, "running_mean")]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    was_training = backbone.training
    try:
        backbone.eval()(image)
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    places = [place for place, (_, is_first) in enumerate(seen) if is_first]
    if len(places) != 1 or places[0] + 1 == len(seen):
        return None
    convolution, after = seen[places[0]][0], seen[places[0] + 1][0]
    plain = type(convolution).__name__ in ("Conv2d", "Conv2dSame") and isinstance(convolution, nn.Conv2d)
    return (convolution, after) if plain and convolution.in_channels == 3 else None


def _change(trained: PixelNorm, given: PixelNorm) -> tuple[list[float], list[float]]:
    """Factor and shift of each channel that make pixels of the given normalisation those of the trained one."""
    factors = [new / old for new, old in zip(given.std, trained.std, strict=True)]
    shifts = [(new - old) / scale for new, old, scale in zip(given.mean, trained.mean, trained.std, strict=True)]
    return factors, shifts
