"""Tiny saved models for whole runs on the drawn scenes (64 px)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from builders import tiny_detr
from builders_deformable import tiny_deformable_detr, tiny_rt_detr
from builders_realtime import tiny_d_fine, tiny_lw_detr
from qskd.data.synthetic import class_names
from qskd.data.transforms import ImageSize
from qskd.models.families import adapter_class
from qskd.models.processors import save_model

NAMES = class_names("easy")


def _labels() -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: index for index, name in enumerate(NAMES)},
        "num_labels": len(NAMES),
    }


MODELS: dict[str, tuple[int, Callable[[], Any]]] = {
    "rt_detr_teacher": (1, lambda: tiny_rt_detr(**_labels())),
    "rt_detr_student": (2, lambda: tiny_rt_detr(decoder_layers=2, num_queries=12, **_labels())),
    # No dropout, frozen batch norms: what a step does depends on its images alone, not on how they are batched.
    "deformable_teacher": (3, lambda: tiny_deformable_detr(refine=True, dropout=0.0, **_labels())),
    "detr_teacher": (5, lambda: tiny_detr(dropout=0.0, **_labels())),
    "detr_student": (6, lambda: tiny_detr(dropout=0.0, decoder_layers=2, num_queries=8, **_labels())),
    "d_fine_student": (7, lambda: tiny_d_fine(decoder_layers=2, num_queries=8, **_labels())),
    "lw_detr_student": (8, lambda: tiny_lw_detr(decoder_layers=2, num_queries=8, **_labels())),
    "deformable_student": (4, lambda: tiny_deformable_detr(decoder_layers=2, num_queries=8, dropout=0.0, **_labels())),
}


def save(name: str, folder: Path) -> Path:
    """Build one of ``MODELS`` from its own seed and save it as a from_pretrained folder."""
    seed, build = MODELS[name]
    torch.manual_seed(seed)
    model = build()
    return save_model(adapter_class(model.config.model_type)(model), folder, size=ImageSize(square=64))


def tiny_run(folder: Path, scenes: Path, **options: Any) -> dict[str, Any]:
    """Options of a run of a few steps."""
    return {
        "data": str(scenes),
        "output_dir": str(folder),
        "image_size": 64,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    } | options


def entries_of(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that hold a key, without the time that an evaluation took."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "eval_runtime"} for entry in entries if key in entry]


def edited(scenes: Path, folder: Path, change: Callable[[dict[str, Any]], Any], *splits: str) -> Path:
    """The scenes with the annotation files of some splits changed; the images are the same files."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(scenes / "images")
    for split in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        if split in splits:
            change(content)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def without_objects(content: dict[str, Any]) -> None:
    """For ``edited``: no image holds anything."""
    content["annotations"] = []


def complete_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with all that makes one complete, of a model of one weight."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "identity.json").write_text(json.dumps({"average_updates": step}))
    for name in ("distiller", "average"):
        save_file({"weight": torch.zeros(3)}, folder / f"{name}.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(3)}, folder / name)
    return folder
