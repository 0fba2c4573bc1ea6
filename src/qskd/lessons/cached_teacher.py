"""A teacher that reads its answers from a cache: the same lessons, no model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from qskd.data.batch import Batch, Targets
from qskd.errors import CheckpointError, ConfigError
from qskd.labels import LabelMap
from qskd.lessons.cache import TeacherCache
from qskd.lessons.record import Record, RecordedMass, assembled
from qskd.losses.term import Term
from qskd.models.host import sent
from qskd.models.view import DetrView
from qskd.selection.groups import QueryGroups
from qskd.teacher import Asked, Teaching, Unlabeled, prepared

_MOVED = 1e-4  # a box, as a fraction of the image: more than rounding on another machine


class CachedTeacher:
    """Puts lessons together from records; to a trainer the same as ``TeacherSide``.

    Every image is as the teacher saw it alone, so a lesson does not depend on what else is in the batch.

    Args:
        cache: of the images and augmentations that batches will hold.
        label_map: from the student's classes to the teacher's.
        terms: the distillation terms by name; only their ``prepare`` is used here.
        own_size: whether the teacher saw images at another size than the student does.
    """

    def __init__(
        self, cache: TeacherCache, label_map: LabelMap, terms: Mapping[str, Term], *, own_size: bool = False
    ) -> None:
        self.cache = cache
        self.label_map = label_map
        self.terms = terms
        self.own_size = own_size

    def to(self, device: torch.device) -> None:
        """Nothing to do: a lesson goes where its batch is."""

    def label(self, batch: Batch, threshold: float, *, sample: torch.Generator | None) -> Unlabeled:
        """Not possible.

        Raises:
            ConfigError: always.
        """
        raise no_unlabeled()

    @torch.no_grad()
    def teach(self, batch: Batch) -> Teaching:
        """The teacher's side of one micro-batch.

        Raises:
            CheckpointError: a shard is damaged, or was made of other images.
        """
        records = [self.cache.lessons.read(epoch, position) for epoch, position in batch.variations]
        facts = self.cache.content.teacher
        strides = facts.strides if "memory.0" in records[0] else ()
        view, groups, content = assembled(records, strides, facts.num_queries)
        device = batch.pixels.device
        asked = Asked.of(batch, self.label_map)
        self._check_objects(records, asked.targets, batch)
        sizes = (sent(content, device), batch.content) if self.own_size else (None, None)
        return prepared(asked.answered(_on(view, device), _groups_on(groups, device), *sizes), self.terms)

    def _check_objects(self, records: Sequence[Record], targets: Targets, batch: Batch) -> None:
        """Where the objects lie tells files, annotations and augmentations apart that nothing else does."""
        boxes = targets.on_host()
        if boxes is None:
            boxes = targets.boxes.cpu()
        for at, (record, count) in enumerate(zip(records, targets.counts, strict=True)):
            objects = record["objects"]
            if len(objects) != count:
                what = f"had {len(objects)} objects, and has {count} now"
            elif (objects - boxes[at, :count]).abs().gt(_MOVED).any():
                what = "had its objects elsewhere"
            else:
                continue
            epoch, _ = batch.variations[at]
            raise CheckpointError(
                f"The teacher cache in {self.cache.folder} was made of other images: in epoch {epoch}, image "
                f"{batch.image_ids[at]} {what}. Images, annotations or the version of qskd have changed since: make it "
                "again with `qskd cache`, in another folder."
            )


def no_unlabeled() -> ConfigError:
    """The error for images that no cache can know."""
    return ConfigError(
        "--unlabeled needs the teacher at every step, to say what is on images without annotations; --teacher_cache "
        "holds its answers to the labelled ones alone. Give --teacher without --teacher_cache, or leave out "
        "--unlabeled."
    )


def _groups_on(groups: QueryGroups, device: torch.device) -> QueryGroups:
    return replace(
        groups,
        role=sent(groups.role, device),
        owner=sent(groups.owner, device),
        giou=sent(groups.giou, device),
        match=sent(groups.match, device),
    )


def _on(view: DetrView, device: torch.device) -> DetrView:
    attention = view.attention
    return replace(
        view,
        logits=sent(view.logits, device),
        no_object=None if view.no_object is None else sent(view.no_object, device),
        boxes=sent(view.boxes, device),
        memory=tuple(sent(level, device) for level in view.memory),
        is_padding=tuple(sent(mask, device) for mask in view.is_padding),
        attention=attention.to(device) if isinstance(attention, RecordedMass) else None,
    )
