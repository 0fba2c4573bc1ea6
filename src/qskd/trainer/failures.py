"""What ends a training from outside, in words: no room on the disk, no memory on the device, an image that is gone."""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qskd.data.batch import Batch
from qskd.files import whole_file

_WRITING = (  # numbers of errors that writing may end with
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
)
_IN_WORDS = re.compile(r"\(os error (\d+)\)")  # of Rust, in which safetensors is written
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container(?!.*Reader)|iostream error", re.DOTALL)
_NO_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can(?:'|no)t allocate memory|not enough memory|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_GIB = 2**30


def why_not_written(error: BaseException) -> str | None:
    """Why a file could not be written, if that is what an error says; PyTorch's own writer does not say why."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _WRITING else None
    if isinstance(error, SafetensorError) and (found := _IN_WORDS.search(str(error))):
        return os.strerror(int(found.group(1)))
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        return "it could not be written"
    return None


def is_no_memory(error: BaseException) -> bool:
    """Whether memory, of the device or of the machine, is what was lacking."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def room(folder: Path, needed: int) -> str:
    """What a checkpoint needs and what is free where it goes, in words; ``needed`` in bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return f"A checkpoint needs about {_amount(needed)}, {_amount(free)} are free there."


def _amount(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def first_hand(error: Exception) -> str:
    """The message alone, where a process that loaded images sent it together with its traceback."""
    return str(error).rstrip().rsplit(f"{type(error).__name__}: ", 1)[-1]


@dataclass(frozen=True, slots=True)
class Load:
    """What a step asks of the device's memory."""

    images: int  # of a micro-batch
    steps: int  # micro-batches of an optimiser step
    size: tuple[int, int] | None  # (height, width) of the padded batch, pixels
    is_half: bool
    can_halve: bool  # whether bf16 makes sense there

    def advice(self) -> str:
        """What makes it less; first what leaves the run the same."""
        ways = []
        if self.images > 1:
            fewer = self.images // 2
            more = -(-self.images * self.steps // fewer)
            same = "the same step" if fewer * more == self.images * self.steps else "almost the same step"
            flags = f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {more}"
            ways.append(f"{flags} takes {same} in less memory")
        new = ["--bf16"] if self.can_halve and not self.is_half else []
        smaller = f"an --image_size below {max(self.size)}" if self.size else "a smaller --image_size"
        ways.append(f"{' or '.join([*new, smaller])} needs less, too, but makes another run: give a new --output_dir")
        return "; ".join(ways) + "."

    def in_words(self) -> str:
        """What did not fit."""
        shape = f" of {self.size[1]} x {self.size[0]} pixels" if self.size else ""
        return f"{self.images} image{'s' if self.images > 1 else ''}{shape} at a time in {self._precision()}"

    def _precision(self) -> str:
        return "half precision" if self.is_half else "float32"


def advice_for_evaluation(images: int) -> str:
    """What makes an evaluation of so many images at a time take less memory."""
    if images > 1:
        less = f"--per_device_eval_batch_size {images // 2}"
        return f"{images} images at a time. {less} needs less, and the run stays the same."
    return "one image at a time. A smaller --image_size needs less, but makes another run: give a new --output_dir."


def memory_in_words(device: torch.device) -> str:
    """What a GPU has and what was taken of it; nothing for other devices."""
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory
    return f" ({_amount(torch.cuda.max_memory_reserved(device))} of {_amount(total)} were taken at most)"


def keep_batch(path: Path, batch: Batch, parts: dict[str, float], unlabeled: Batch | None = None) -> str:
    """Save a batch, with the parts of its loss, for whoever looks for the reason; what became of it, in words.

    The images without annotations of the same step, and what the teacher found on them, go below ``unlabeled``.
    """
    content = _plain(batch) | {"parts": parts}
    if unlabeled is not None:
        content["unlabeled"] = _plain(unlabeled)
    try:
        with whole_file(path) as fresh:
            torch.save(content, fresh)
    except (OSError, RuntimeError) as error:
        return f"could not be saved to {path} ({why_not_written(error) or error})"
    return f"was saved to {path}"


def _plain(batch: Batch) -> dict[str, Any]:
    return {
        "image_ids": batch.image_ids,
        "pixels": batch.pixels.cpu(),
        "content": batch.content.cpu(),
        "labels": batch.targets.labels.cpu(),
        "boxes": batch.targets.boxes.cpu(),
    }
