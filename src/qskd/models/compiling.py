"""A backbone compiled by torch: the part of a detector that does most of the work, and has no branches."""

from dataclasses import dataclass
from functools import cache

import torch

from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.initialising import backbone_of

_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, slots=True)
class Compiling:
    """How ``torch.compile`` is asked: its backend and its mode, None for its default."""

    backend: str = "inductor"
    mode: str | None = None

    def __post_init__(self) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if self.backend not in known:
            raise ConfigError(f"torch_compile_backend is '{self.backend}'; this torch has {', '.join(known)}.")
        if self.mode is not None and (self.backend != "inductor" or self.mode not in _MODES):
            raise ConfigError(
                f"torch_compile_mode is '{self.mode}' with the backend {self.backend}; the backend inductor has "
                f"{', '.join(_MODES)}, others have none."
            )

    def backbone(self, adapter: DetrAdapter, device: torch.device) -> DetrAdapter:
        """The same adapter; its backbone is compiled in place when it first sees images, and again for other sizes.

        Names, weights and what is saved stay; copies of the model are not compiled. What the rest of a detector does
        (hooks on attention, matching) leaves the device or depends on what it finds, and is left alone.

        Raises:
            ConfigError: nothing can be compiled for the device that the model will answer on.
        """
        _try(self, device.type)
        backbone_of(adapter.model).compile(backend=self.backend, mode=self.mode)
        return adapter


@cache
def _try(compiling: Compiling, device: str) -> None:
    """Compile next to nothing: a machine without a compiler ends here instead of in its first step."""
    try:
        doubled = torch.compile(_doubled, backend=compiling.backend, mode=compiling.mode)
        doubled(torch.zeros(2, device=device))
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"torch_compile was given, but the backend {compiling.backend} can compile nothing for {device} here "
            f"({reason}). Install what it asks for (inductor wants a C++ compiler such as g++, or its path in CXX), "
            "or leave --torch_compile out."
        ) from error


def _doubled(values: torch.Tensor) -> torch.Tensor:
    return values + values
