"""From a hub id, a folder or a configuration to an adapter."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig

from qskd.errors import CheckpointError, ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.classes import change_classes
from qskd.models.families import adapter_class
from qskd.models.initialising import initialise_detector, thaw_backbone, train_backbone
from qskd.models.processors import default_pixel_norm, pixel_norm_of
from qskd.models.shared_weights import give_own_memory, restore_shared_weights
from qskd.models.timm_backbones import keep_activations

_log = logging.getLogger(__name__)

BoxFrame = Literal["content", "canvas"]

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",  # read by transformers with weights_only=True
    "pytorch_model.bin.index.json",
)
_SHOWN = 5  # names listed in an error
_LONGEST_REASON = 500  # characters quoted of somebody else's error


def load_model(
    name_or_path: str | Path,
    *,
    box_frame: BoxFrame = "content",
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
) -> DetrAdapter:
    """A trained detector, complete or not at all.

    Args:
        name_or_path: a folder with ``config.json`` and weights, or a hub id such as ``PekingU/rtdetr_r18vd``.
        box_frame: what the model's boxes are fractions of, see ``DetrAdapter``.
        trust_remote_code: let a hub repository bring its own model code.
        dtype: of the weights; float32 when None, whatever the checkpoint holds.

    Raises:
        CheckpointError: nothing usable is there, or a weight of the model is absent or of another shape.
        UnsupportedFamily: no adapter reads this kind of model.
    """
    source = _checked_source(name_or_path)
    config = read_config(source, trust_remote_code)
    family = adapter_class(config.model_type)
    try:
        model, info = AutoModelForObjectDetection.from_pretrained(
            source,
            config=config,
            dtype=dtype or torch.float32,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # refused below, where the weights can be named
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ImportError, ValueError, SafetensorError, UnpicklingError) as error:
        raise _unloadable(source, error) from error
    _check_complete(source, info)
    restore_shared_weights(model, source)
    give_own_memory(model)
    train_backbone(model)
    _check_finite(source, model)
    return family(model, pixel_norm=pixel_norm_of(source, config), box_frame=box_frame)


def _checked_source(name_or_path: str | Path) -> str:
    path = Path(name_or_path).expanduser()
    if not path.exists() and not _looks_like_path(name_or_path):
        return str(name_or_path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}. Give a folder with config.json and model.safetensors, or a hub id.")
    if not (path / "config.json").is_file():
        inside = next((path / name for name in ("best", "last") if (path / name / "config.json").is_file()), None)
        what = "a folder written by save_pretrained" if inside is None else f"{inside}, the model of this run"
        raise CheckpointError(f"{path} holds no config.json. Give {what}.")
    if not any((path / name).is_file() for name in _WEIGHT_FILES):
        raise CheckpointError(
            f"{path} holds no weights: looked for {', '.join(_WEIGHT_FILES)}. "
            "Give a folder written by save_pretrained; a lone configuration goes to new_model."
        )
    return str(path)


def _looks_like_path(name: str | Path) -> bool:
    text = str(name)
    return isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1


def read_config(source: str, trust_remote_code: bool = False) -> Any:
    """A detector's configuration alone, from a folder or the hub.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, StrictDataclassError, RecursionError) as error:
        raise _unloadable(source, error) from error


def _unloadable(source: str, error: Exception) -> CheckpointError:
    reason = _in_one_line(error)
    if Path(source).is_dir():
        return CheckpointError(f"The model in {source} cannot be loaded: {reason}")
    return CheckpointError(
        f"'{source}' is no folder here, and as a hub id it cannot be loaded: {reason} "
        "Without a network, download it elsewhere (`hf download ID --local-dir FOLDER`) and give that folder."
    )


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:_LONGEST_REASON] if text else type(error).__name__


def _check_finite(source: str, model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: the weight {name} holds NaN or infinity; its training diverged.")


def _check_complete(source: str, info: Mapping[str, Any]) -> None:
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("num_batches_tracked"))
    reshaped = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights, which would stay random: {_first(missing)}. "
            "Its config.json describes another model than its weights."
        )
    if reshaped:
        raise CheckpointError(
            f"{source} holds {len(reshaped)} weights of other shapes than its config.json says: {_first(reshaped)}."
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def new_model(
    config: PreTrainedConfig | Mapping[str, Any] | str | Path,
    class_names: Sequence[str],
    *,
    box_frame: BoxFrame = "content",
) -> DetrAdapter:
    """A detector with random weights, ready to be trained from scratch. Nothing is downloaded.

    The backbone is random too: it learns whole, with batch norms that are not frozen. Random numbers come
    from torch's global generator.

    Args:
        config: a configuration, its fields (with ``model_type``), or a JSON file of them.
        class_names: the classes to predict, in the order of their indices.
        box_frame: what the model's boxes are to be fractions of, see ``DetrAdapter``.

    Raises:
        ConfigError: the configuration is no detector's, would lose activations of its timm backbone, or no classes
            are given.
        UnsupportedFamily: no adapter reads this kind of model.
    """
    settled = config_with_classes(as_config(config), class_names)
    family = adapter_class(settled.model_type)
    if hasattr(settled, "freeze_backbone_batch_norms"):
        settled.freeze_backbone_batch_norms = False
    keep_activations(settled)
    model = build(settled)
    initialise_detector(model)
    thaw_backbone(model)
    return family(model, pixel_norm=default_pixel_norm(settled), box_frame=box_frame)


def build(config: Any) -> nn.Module:
    """A float32 model with Hugging Face's random weights, in evaluation mode as from ``from_pretrained``.

    Raises:
        ConfigError: the family refuses the configuration.
    """
    try:
        model: nn.Module = AutoModelForObjectDetection.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ImportError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(
            f"No {config.model_type} can be built from this configuration: {_in_one_line(error)}"
        ) from error
    return model.eval()


def config_with_classes(config: Any, class_names: Sequence[str]) -> Any:
    """A copy of a configuration that names its classes, 0 to C - 1.

    Raises:
        ConfigError: no class names.
    """
    if not class_names:
        raise ConfigError("A detector needs at least one class; no class names were given.")
    settled = type(config).from_dict(config.to_dict())
    settled.id2label = dict(enumerate(class_names))
    settled.label2id = {name: index for index, name in enumerate(class_names)}
    return settled


def as_config(config: PreTrainedConfig | Mapping[str, Any] | str | Path) -> Any:
    """A configuration from its fields (with ``model_type``), or from a JSON file of them; backbones unpretrained.

    Raises:
        ConfigError: it is no valid configuration.
        UnsupportedFamily: no adapter reads this kind of model.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    if isinstance(config, Mapping):
        return _from_fields(dict(config), "the configuration")
    path = Path(config).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"{path} is no file. Give a JSON file with the fields of a model configuration.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds a {type(fields).__name__}, expected an object of configuration fields.")
    return _from_fields(fields, str(path))


def _from_fields(fields: dict[str, Any], origin: str) -> Any:
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ConfigError(f'{origin} has no model_type, for example "model_type": "rt_detr".')
    adapter_class(model_type)  # refuses unknown families before transformers does
    if "use_pretrained_backbone" in fields:
        fields["use_pretrained_backbone"] = False
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"{origin} is no valid {model_type} configuration: {_in_one_line(error)}") from error


def with_class_names(adapter: DetrAdapter, class_names: Sequence[str]) -> DetrAdapter:
    """The same detector, predicting the given classes.

    Head rows (and RT-DETR's label embeddings) of classes that have the same name are kept, in their new
    places; rows of other classes are random, as before training. Which are which is logged.

    Args:
        adapter: left as it is; the answer holds a copy unless names and order agree already.
        class_names: in the order of the data's class indices.

    Raises:
        ConfigError: no class names.
        LabelMapError: class names that cannot be told apart.
    """
    if not class_names:
        raise ConfigError("A detector needs at least one class; no class names were given.")
    if adapter.id2label == dict(enumerate(class_names)):
        return adapter
    model = copy.deepcopy(adapter.model)
    kept = change_classes(model, class_names)
    fresh = [name for name in class_names if name not in kept]
    _log.info("Kept the head rows of %d of %d classes; new: %s", len(kept), len(class_names), fresh or "none")
    return type(adapter)(model, pixel_norm=adapter.pixel_norm, box_frame=adapter.box_frame)


def as_teacher(adapter: DetrAdapter) -> DetrAdapter:
    """The same adapter, its model frozen: evaluation mode, no gradients."""
    adapter.model.eval()
    adapter.model.requires_grad_(False)
    return adapter
