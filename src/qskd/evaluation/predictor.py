"""What finds objects in pictures: one door, whatever is behind it.

Letters: B images, Q queries, C classes, K detections of an image.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qskd.data.batch import Sample, collate
from qskd.data.transforms import ImageSize, build_transform
from qskd.errors import CheckpointError
from qskd.evaluation.detections import Detections, detections_of
from qskd.labels import LabelMap
from qskd.models.adapter import DetrAdapter
from qskd.models.relabel import to_student_classes
from qskd.models.view import DetrView


class Predictor(Protocol):
    """Finds objects in images of any sizes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What can be found; ``Detections.labels`` are positions in it."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The model's own index of each class, which is not its position where the model has unused rows."""

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """The detections of each image, best first.

        Args:
            images: at least one, [3, h, w] uint8 each, upright, of any sizes.

        Returns:
            Boxes in pixels of these images, not clipped to them.
        """


class AdapterPredictor:
    """A Hugging Face DETR on its device, seeing images as `qskd eval` shows them.

    Args:
        adapter: the model; put into evaluation mode.
        size: what images are resized to.
        top: detections of an image, at most.
        only: positions in the model's used classes that alone may be found; None for all.
    """

    def __init__(
        self, adapter: DetrAdapter, size: ImageSize, *, top: int = 100, only: Sequence[int] | None = None
    ) -> None:
        adapter.model.eval()
        self.adapter = adapter
        self.size = size
        self.top = top
        self.only = None if only is None else np.unique(np.array(only, dtype=np.int64))
        self._classes = LabelMap.of_model(adapter.id2label)
        self._resize = build_transform(size, train=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's head, without rows that stand for no class."""
        return self._classes.student_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The row of the head that each class has."""
        return self._classes.teacher_index

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """See ``Predictor``.

        Raises:
            CheckpointError: the model answers with numbers that are not finite.
        """
        batch = collate([self._sample(position, pixels) for position, pixels in enumerate(images)])
        device = next(self.adapter.model.parameters()).device
        view = to_student_classes(self.adapter.read(batch.to(device)).view, self._classes)
        found = self._best(view, batch.original_sizes)
        if not all(np.isfinite(one.scores).all() and np.isfinite(one.boxes).all() for one in found):
            raise CheckpointError("The model's scores or boxes are not finite: it has diverged in training.")
        return found

    def _sample(self, position: int, pixels: Tensor) -> Sample:
        nothing = (np.empty(0, dtype=np.int64), np.empty((0, 4)))
        shown, _ = self._resize(pixels, nothing, np.random.default_rng(0))
        height, width = pixels.shape[-2:]
        return Sample(shown, torch.empty(0, dtype=torch.long), torch.empty(0, 4), position, (height, width))

    def _best(self, view: DetrView, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """As ``detections_of``; those of ``only`` are what would be left of a list of all, however long."""
        if self.only is None:
            return detections_of(view, sizes, self.top)
        if view.no_object is None:  # every class has scores of its own
            columns = torch.from_numpy(self.only).to(view.logits.device)
            found = detections_of(replace(view, logits=view.logits[..., columns]), sizes, self.top)
            return [Detections(scores, self.only[labels], boxes) for scores, labels, boxes in found]
        kept = []
        for one in detections_of(view, sizes, view.num_queries):
            chosen = np.flatnonzero(np.isin(one.labels, self.only))[: self.top]
            kept.append(Detections(one.scores[chosen], one.labels[chosen], one.boxes[chosen]))
        return kept
