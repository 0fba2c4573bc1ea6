"""What cells need before they can train: drawn scenes, a held-out part, students with a teacher's weights."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from qskd.data.synthetic import draw_dataset
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.models.inheriting import Lineage, layer_choice
from qskd.models.processors import save_model
from qskd.runs import building
from qskd.runs.options import SourceOptions
from qskd.runs.splitting import split

PARENT = "QSKD_BENCHMARK_DATA"
LAST_WRITTEN = Path("annotations") / "instances_val.json"
INHERITED = "inherited.json"
NOTES = "cell.json"  # beside a run: its command and how it went
_BY_POINT = ("sampling_offsets", "attention_weights")  # rows by head, level and point: no channels


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a student corresponds to what of its teacher."""

    names: Mapping[str, str] = field(default_factory=dict)  # the teacher's name for one of the student's
    fresh: tuple[str, ...] = ()  # names of layers that are laid out otherwise, and not inherited


def find_data(name: str, given: Mapping[str, Path]) -> Path | None:
    """The folder of a dataset: as given, or below the folder that the environment names; None where it is unknown.

    Raises:
        ConfigError: what was given is not there.
    """
    if name in given:
        if not given[name].exists():
            raise ConfigError(f"--data {name}={given[name]}: there is nothing.")
        return given[name].resolve()
    parent = os.environ.get(PARENT)
    return (Path(parent) / name).resolve() if parent and (Path(parent) / name).exists() else None


def draw(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Scenes as a recipe of the grid says."""
    draw_dataset(folder, **recipe)


def hold_out(data: Path, folder: Path, share: float) -> None:
    """The training split of a data set as a training and a validation split of its own."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    split(SourceOptions(data=str(data)), fresh, {"train": 1 - share, "val": share})
    fresh.rename(folder)


def inherit(configuration: Path, teacher: Path, parts: Parts, seed: int, image_size: int, folder: Path) -> None:
    """A student that begins with its teacher's weights, as a ``from_pretrained`` folder.

    What the teacher has under the same name comes from there, evenly spaced channels where it is wider; the rest is as
    ``--model CONFIGURATION --seed SEED`` would draw it. Layers are chosen as for derived students.

    Args:
        configuration: the student's.
        teacher: a trained detector of the same family.
        parts: what corresponds.
        seed: of what is not inherited.
        image_size: pixels, for the image processor.
        folder: written whole or not at all.

    Source: Xu et al. 2024, "Initializing Models with Larger Ones" (uniform selection). Evenly spaced channels of two
    maps side by side are those of each map, where both shrink by the same factor.
    """
    source = building.open_model(str(teacher), None, box_frame="content")
    names = [source.id2label[number] for number in sorted(source.id2label)]
    set_seed(seed)
    student = building.open_model(str(configuration), names, box_frame="content")
    taken = select_weights(student.model, source.model, parts)
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(student, fresh, size=ImageSize(square=image_size))
    total = sum(tensor.numel() for tensor in student.model.state_dict().values())
    (fresh / INHERITED).write_text(json.dumps({"inherited": taken, "weights": total}))
    fresh.rename(folder)


@torch.no_grad()
def select_weights(student: nn.Module, teacher: nn.Module, parts: Parts) -> int:
    """Fill a student from a teacher that is as large or larger in every dimension; how many weights were taken.

    A module is taken whole or not at all. Of buffers only the statistics of batch norms are taken: others describe the
    model's own shape.
    """
    lineage = _lineage(student, teacher)
    modules = dict(teacher.named_modules())
    taken = 0
    for name, module in student.named_modules():
        origin = modules.get(_renamed(lineage.source_name(name), parts.names))
        if origin is None or any(f".{part}." in f".{name}." for part in parts.fresh):
            continue
        mine, theirs = _own(module), _own(origin)
        if name.endswith(_BY_POINT) and any(mine[key].shape != theirs[key].shape for key in mine):
            continue
        if mine and mine.keys() == theirs.keys() and all(_fits(mine[key], theirs[key]) for key in mine):
            for key, tensor in mine.items():
                tensor.copy_(_evenly_spaced(theirs[key], tensor.shape))
                taken += tensor.numel()
    return taken


def _lineage(student: nn.Module, teacher: nn.Module) -> Lineage:
    ours: Any = student.config
    theirs: Any = teacher.config
    encoder, their_encoder = (getattr(config, "encoder_layers", 0) for config in (ours, theirs))
    return Lineage(
        encoder=layer_choice(encoder, their_encoder),
        decoder=layer_choice(ours.decoder_layers, theirs.decoder_layers),
        source_decoder_layers=theirs.decoder_layers,
        rows=(),
        source_classes=theirs.num_labels,
    )


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    for mine, theirs in parts.items():
        if f".{mine}." in f".{name}.":
            return f".{name}.".replace(f".{mine}.", f".{theirs}.").strip(".")
    return name


def _evenly_spaced(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    for dim, size in enumerate(shape):
        chosen = torch.arange(size, device=tensor.device) * tensor.shape[dim] // size
        tensor = tensor.index_select(dim, chosen)
    return tensor


def _own(module: nn.Module) -> dict[str, Tensor]:
    tensors = dict(module._parameters)
    if "running_mean" in module._buffers:
        tensors |= {name: module._buffers[name] for name in ("running_mean", "running_var")}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def _fits(mine: Tensor, theirs: Tensor) -> bool:
    return mine.dim() == theirs.dim() and all(a <= b for a, b in zip(mine.shape, theirs.shape, strict=True))


def ap_of(folder: Path) -> float | None:
    """AP in the summary of a finished run."""
    try:
        found = json.loads((folder / "summary.json").read_text())["metrics"].get("AP")
    except (OSError, ValueError):
        return None
    return None if found is None else float(found)


def has_failed(folder: Path) -> bool:
    """Whether the last try of a run ended with an error of its own."""
    try:
        return "failed" in json.loads((folder / NOTES).read_text())
    except (OSError, ValueError):
        return False
