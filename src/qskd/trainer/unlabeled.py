"""Images without annotations beside those of a training step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qskd.data.batch import Batch
from qskd.data.unlabeled import UnlabeledDataset, unlabeled_loader
from qskd.teacher import Teacher, Unlabeled
from qskd.trainer.config import DistillationConfig
from qskd.trainer.interruptions import shield


@dataclass(frozen=True, slots=True)
class UnlabeledImages:
    """Images without annotations that are learnt from beside the others, as many batches."""

    dataset: UnlabeledDataset
    batch_size: int
    threshold: float  # of the teacher's scores; less sure detections are no objects
    detection: bool  # whether the student's detection loss sees them, see ``TeacherSide.label``


class UnlabeledSteps:
    """Micro-batches without annotations, labelled by the teacher, step by step.

    Args:
        given: the images.
        teacher: who labels them.
        args: of the training.
    """

    def __init__(self, given: UnlabeledImages, teacher: Teacher, args: DistillationConfig) -> None:
        self.given, self.teacher, self.args = given, teacher, args
        self._stream: Iterator[Batch] | None = None

    def label(self, step: int, device: torch.device, count: int) -> Sequence[Unlabeled]:
        """The micro-batches of a step; the steps before the first one asked for are past.

        Args:
            step: optimiser steps done.
            device: where the models are.
            count: micro-batches wanted, at most those of a whole step.
        """
        if self._stream is None:
            loader = unlabeled_loader(
                self.given.dataset,
                self.given.batch_size,
                rank=self.args.process_index,
                world=self.args.world_size,
                past=step * self.args.gradient_accumulation_steps,
                workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
            )
            self._stream = iter(shield(loader))
        # As many each step, also where an epoch ends early: a resumed run must find its place.
        steps = self.args.gradient_accumulation_steps
        batches = [next(self._stream).to(device, non_blocking=True) for _ in range(steps)]
        sample = self._generator(step) if self.given.detection else None
        return [self.teacher.label(batch, self.given.threshold, sample=sample) for batch in batches[:count]]

    def _generator(self, step: int) -> torch.Generator:
        """One of its own: a resumed run restores torch's only after its first batches are made."""
        key = [self.args.seed, step, self.args.process_index]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
