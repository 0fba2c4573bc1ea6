"""What one process decides for all of them: what depends on a disk, or on where one process looks first."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from qskd.errors import QskdError

T = TypeVar("T")


def decided(decide: Callable[[], T]) -> T:
    """What the first process decides, in every process; an error that it meets is raised in every process.

    Processes that are not connected decide by themselves.

    Args:
        decide: called in the first process alone; its answer can be pickled.

    Raises:
        QskdError: ``decide`` raised it, in the first process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    answer: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = decide()
        except QskdError as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], QskdError):
        raise answer[0]
    return answer[0]
