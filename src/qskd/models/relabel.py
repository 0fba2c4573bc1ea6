"""A teacher's predictions in the student's vocabulary, and the objects that it knows."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from qskd.data.batch import Targets
from qskd.labels import LabelMap
from qskd.models.view import DetrView

_NEVER = -100.0  # logit of a class the teacher does not have: probability 4e-44, and still finite in float16


def to_student_classes(view: DetrView, label_map: LabelMap) -> DetrView:
    """The same view, its classes those of the student.

    A sigmoid head's columns are picked; each keeps its probability. Of a softmax head, the probability of
    classes the student does not have goes to no-object (log-sum-exp of the logits), so every other one is
    kept. Classes the teacher does not have get practically 0: leave them out of any class loss.

    Args:
        view: of the teacher, [L, B, Q, C_teacher].
        label_map: from the teacher's vocabulary to the student's.

    Returns:
        The view with logits [L, B, Q, C_student]; the given one when both vocabularies are the same.
    """
    if label_map.teacher_index == tuple(range(view.num_classes)):
        return view
    columns, known, dropped = _columns(label_map, view.num_classes, view.logits.device)
    picked = view.logits[..., columns]  # [L, B, Q, C_student]
    if view.no_object is None:
        return replace(view, logits=picked.masked_fill(~known, _NEVER))
    return _relabel_softmax(view, picked, known, dropped)


def known_targets(targets: Targets, known: Tensor, all_known: bool) -> tuple[Targets, Tensor | None]:
    """The objects whose class the teacher knows, and which objects of the batch they are.

    Args:
        targets: of B images.
        known: [C] bool.
        all_known: whether all of ``known`` is True, so that nobody has to ask the device.

    Returns:
        The targets of N' <= N objects, and [B, N'] long, each one's place among the N; None where all are known.
    """
    if all_known:
        return targets, None
    keep = targets.is_object & known[targets.labels]  # [B, N]
    counts = tuple(int(count) for count in keep.sum(1).tolist())
    columns = keep.int().argsort(dim=1, descending=True, stable=True)[:, : max(counts, default=0)]
    is_object = keep.gather(1, columns)
    labels = targets.labels.gather(1, columns) * is_object
    boxes = targets.boxes.gather(1, columns[..., None].expand(-1, -1, 4)) * is_object[..., None]
    return Targets(labels, boxes, is_object, counts), columns


def _relabel_softmax(view: DetrView, picked: Tensor, known: Tensor, dropped: Tensor) -> DetrView:
    assert view.no_object is not None
    whole = torch.cat([view.logits, view.no_object[..., None]], dim=-1).float()
    total = whole.logsumexp(-1, keepdim=True)  # a logit is only small in comparison with the others
    rest = whole[..., dropped].logsumexp(-1)  # [L, B, Q], no-object is among them
    logits = torch.where(known, picked.float(), total + _NEVER)
    return replace(view, logits=logits.to(picked.dtype), no_object=rest.to(picked.dtype))


@lru_cache(maxsize=16)
def _columns(label_map: LabelMap, classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher column [C_student], known [C_student] bool, dropped columns and no-object; made once."""
    taken = set(label_map.teacher_index)
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        index = torch.tensor(label_map.teacher_index)
        dropped = torch.tensor([column for column in range(classes + 1) if column not in taken])
        return index.clamp(min=0).to(device), (index >= 0).to(device), dropped.to(device)
