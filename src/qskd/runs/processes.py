"""The processes that torchrun or accelerate launch started: which this is, how many there are, how they part.

Nothing here imports PyTorch: a command that only says what is wrong must not wait for it.
"""

import gc
import os
import sys
from datetime import timedelta

from qskd.errors import ConfigError

_PATIENCE = timedelta(days=365)  # another process may have many more shards to make


def rank() -> int:
    """Which of the processes this is; 0 without a launcher."""
    return int(os.environ.get("RANK") or 0)


def world() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def on_this_machine() -> int:
    """How many of them run on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def meet() -> None:
    """Wait until every process of the launch is here, however long that takes; nothing where there is one.

    Raises:
        ConfigError: the launcher does not say where they meet, or one of them has ended.
    """
    if world() == 1:
        return
    import torch.distributed as distributed

    try:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=_PATIENCE)
        distributed.barrier()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The {world()} processes cannot wait for each other: one has ended, or the command was not started with "
            f"torchrun or accelerate launch ({error})."
        ) from error


def part(*, ended_well: bool) -> None:
    """Disconnect the processes before Python shuts down; to be called where no error is being handled any more.

    Else threads of the connection, which release tensors, would ask for an interpreter that is gone, and abort the
    process. The traceback of an error holds the wrapped model, and that the connection with its threads.

    Args:
        ended_well: after an error NCCL is left alone. It could wait for what another process never sends, and the
            launcher would never learn of the error.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    gc.collect()
    if ended_well or torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
