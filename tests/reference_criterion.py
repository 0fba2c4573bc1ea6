"""Matching, selection, AGFD and LAPD once more: slow, obvious, float64, one number at a time.

Written from the formulas and not from the library's code, whose functions it does not use. Losses are sums of
scalar tensors, so that gradients can be compared as well.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qskd.data.batch import Targets
from qskd.models.adapter import MatchCosts
from qskd.models.view import DetrView

EASY, POSITIVE, HARD = 0, 1, 2


def corners(box: Sequence) -> list:
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def giou(a: Sequence, b: Sequence):
    """Of two cxcywh boxes, of floats or of scalar tensors."""
    (al, at, ar, ab), (bl, bt, br, bb) = corners(a), corners(b)
    width, height = min(ar, br) - max(al, bl), min(ab, bb) - max(at, bt)
    inter = width * height if width > 0 and height > 0 else 0.0
    union = (ar - al) * (ab - at) + (br - bl) * (bb - bt) - inter
    hull = (max(ar, br) - min(al, bl)) * (max(ab, bb) - min(at, bt))
    return inter / union - (hull - union) / hull


def l1(a: Sequence, b: Sequence):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def match_cost(view: DetrView, layer: int, image: int, query: int, label: int, box: list, costs: MatchCosts):
    logits = view.logits[layer, image, query].double().tolist()
    if costs.kind == "softmax":
        everything = [*logits, *([] if view.no_object is None else [view.no_object[layer, image, query].item()])]
        class_cost = -math.exp(logits[label]) / sum(math.exp(value) for value in everything)
    else:
        p = 1 / (1 + math.exp(-logits[label]))
        as_object = costs.alpha * (1 - p) ** costs.gamma * -math.log(p + 1e-8)
        class_cost = as_object - (1 - costs.alpha) * p**costs.gamma * -math.log(1 - p + 1e-8)
    mine = view.boxes[layer, image, query].double().tolist()
    return costs.class_weight * class_cost + costs.box_weight * l1(mine, box) - costs.giou_weight * giou(mine, box)


def match(view: DetrView, targets: Targets, costs: MatchCosts, layer: int, image: int) -> dict[int, int]:
    """Query of each object that has one."""
    objects = range(targets.counts[image])
    if not objects:
        return {}
    table = [
        [
            match_cost(
                view,
                layer,
                image,
                query,
                int(targets.labels[image, one]),
                targets.boxes[image, one].double().tolist(),
                costs,
            )
            for one in objects
        ]
        for query in range(view.num_queries)
    ]
    queries, matched = linear_sum_assignment(np.array(table))
    return {int(one): int(query) for query, one in zip(queries, matched, strict=True)}


def select(
    view: DetrView,
    targets: Targets,
    matched: dict[int, int],
    layer: int,
    image: int,
    *,
    threshold: float = 0.0,
    cap: int | None = 10,
    most: int | None = 150,
    agreement: float | None = None,
    mode: str = "groups",
) -> tuple[list[int], list[int], list[float]]:
    """Role, owner and GIoU of every query of one layer and image."""
    objects = targets.boxes[image, : targets.counts[image]].double().tolist()
    queries = range(view.num_queries)
    if not objects:
        return [EASY for _ in queries], [-1 for _ in queries], [-1.0 for _ in queries]
    object_of = {query: one for one, query in matched.items()}
    owners, values = [], []
    for query in queries:
        box = view.boxes[layer, image, query].double().tolist()
        each = [giou(box, one) for one in objects]
        owner = object_of.get(query, each.index(max(each)))
        owners.append(owner)
        values.append(each[owner])
    hard = [query for query in queries if query not in object_of]
    if mode == "positives":
        hard = []
    if mode == "groups":
        hard = [query for query in hard if values[query] > threshold]
        if agreement is not None:
            hard = [
                query
                for query in hard
                if score(view, layer, image, query, int(targets.labels[image, owners[query]])) >= agreement
            ]
        if cap is not None:
            best: list[int] = []
            for one in range(len(objects)):
                of_one = [query for query in hard if owners[query] == one]
                best += sorted(of_one, key=lambda query: (-values[query], query))[:cap]
            hard = best
        if most is not None:
            hard = sorted(hard, key=lambda query: (-values[query], query))[:most]
    roles = [POSITIVE if query in object_of else HARD if query in hard else EASY for query in queries]
    return roles, owners, values


def score(view: DetrView, layer: int, image: int, query: int, label: int) -> float:
    logits = view.logits[layer, image, query].double().tolist()
    if view.no_object is None:
        return 1 / (1 + math.exp(-logits[label]))
    everything = [*logits, view.no_object[layer, image, query].item()]
    return math.exp(logits[label]) / sum(math.exp(value) for value in everything)


def agfd(
    student: DetrView,
    teacher: DetrView,
    targets: Targets,
    costs: MatchCosts,
    project: Tensor,
    bias: Tensor,
    *,
    norm: str,
    normalise: bool,
    per_level: bool = False,
    power: float = 1.0,
    selection: dict | None = None,
) -> Tensor:
    """One number; all levels share one projection; both sides have the same levels and grids."""
    sizes = [level.shape[-2] * level.shape[-1] for level in teacher.memory]
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    numerator, divisor = torch.zeros((), dtype=torch.float64), 0.0
    for image in range(teacher.num_images):
        padding = torch.cat([mask[image].flatten() for mask in teacher.is_padding])
        groups = sizes if per_level else [sum(sizes)]
        weights = token_weights(teacher, targets, costs, image, padding, groups, power, selection or {})
        if weights is None:
            continue
        for level, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            for token in range(size):
                if padding[start + token]:
                    continue
                row, column = divmod(token, teacher.memory[level].shape[-1])
                ours = project @ student.memory[level][image, :, row, column] + bias
                theirs = teacher.memory[level][image, :, row, column]
                if normalise:
                    ours, theirs = standardised(ours), standardised(theirs)
                distance = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(theirs)
                numerator = numerator + weights[start + token] * distance
                divisor += weights[start + token] if norm == "mass" else 1.0
    return numerator / divisor if divisor else numerator


def token_weights(
    teacher: DetrView,
    targets: Targets,
    costs: MatchCosts,
    image: int,
    padding: Tensor,
    groups: list[int],
    power: float,
    selection: dict,
) -> list[float] | None:
    """W of every token of one image; None when no query is selected. ``groups``: tokens that share a peak."""
    attention = teacher.attention.matrix.double()  # type: ignore[union-attr]
    tokens = range(sum(groups))
    weights = [0.0 for _ in tokens]
    any_selected = False
    for layer in range(teacher.num_layers):
        matched = match(teacher, targets, costs, layer, image)
        roles, _, values = select(teacher, targets, matched, layer, image, **selection)
        omega = {q: max(1.0 + values[q], 1e-3) for q in range(len(roles)) if roles[q] != EASY}
        if not omega:
            continue
        any_selected = True
        mass = [
            sum(omega[q] * attention[layer, image, q, token].item() for q in omega) / sum(omega.values())
            for token in tokens
        ]
        mass = [0.0 if padding[token] else mass[token] for token in tokens]
        start = 0
        for size in groups:
            peak = max(mass[start : start + size])
            for token in range(start, start + size):
                weights[token] += (mass[token] / (peak + 1e-6)) ** power
            start += size
    return weights if any_selected else None


def standardised(values: Tensor) -> Tensor:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return torch.stack([(value - mean) / torch.sqrt(variance + 1e-5) for value in values])


def class_target(view: DetrView, layer: int, image: int, query: int, known: list[bool], softmax: bool) -> list[float]:
    """The teacher's probabilities in the form of the student's head: C, or C + 1 with no-object last."""
    logits = view.logits[layer, image, query].double().tolist()
    classes = [k for k in range(len(logits)) if known[k]]
    if view.no_object is None:
        p = [1 / (1 + math.exp(-logits[k])) if known[k] else 0.0 for k in range(len(logits))]
        if not softmax:
            return p
        greatest, total = max(p), sum(p)
        return [greatest * value / total for value in p] + [1 - greatest]
    nothing = math.exp(view.no_object[layer, image, query].item())
    total = sum(math.exp(logits[k]) for k in classes) + nothing
    p = [math.exp(logits[k]) / total if known[k] else 0.0 for k in range(len(logits))]
    return [*p, nothing / total] if softmax else p


def cross_entropy(
    student: DetrView, layer: int, image: int, query: int, target: list[float], known: list[bool], *, entropy: bool
) -> Tensor:
    """Of the student's prediction and a target; less the target's entropy where asked (then KL)."""
    logits = student.logits[layer, image, query].double()
    result = torch.zeros((), dtype=torch.float64)
    classes = [k for k in range(len(logits)) if known[k]]
    if student.no_object is None:
        for k in classes:
            p = 1 / (1 + torch.exp(-logits[k]))
            result = result - target[k] * torch.log(p) - (1 - target[k]) * torch.log(1 - p)
            if entropy:
                result = result + xlogx(target[k]) + xlogx(1 - target[k])
        return result
    outcomes = [logits[k] for k in classes] + [student.no_object[layer, image, query].double()]
    total = sum(torch.exp(value) for value in outcomes)
    for value, wanted in zip(outcomes, [target[k] for k in classes] + [target[-1]], strict=True):
        result = result - wanted * torch.log(torch.exp(value) / total)
        if entropy:
            result = result + xlogx(wanted)
    return result


def xlogx(value: float) -> float:
    return value * math.log(value) if value > 0 else 0.0


def hard_pairs(
    student: DetrView,
    teacher: DetrView,
    targets: Targets,
    student_layer: int,
    teacher_layer: int,
    image: int,
    student_match: dict[int, int],
    teacher_side: tuple[list[int], list[int], list[float]],
    known: list[bool],
    *,
    scope: str,
    top_up: bool,
    selection: dict,
) -> list[tuple[int, int]]:
    """(student query, teacher query) of every pair of hard negatives."""
    roles, owners, _ = teacher_side
    theirs = [query for query in range(len(roles)) if roles[query] == HARD]
    if scope == "index":
        return [(query, query) for query in theirs if query < student.num_queries]
    if not theirs:
        return []
    asked = {name: value for name, value in selection.items() if name != "agreement"}
    own_roles, own_owners, _ = select(student, targets, student_match, student_layer, image, **asked)
    objects = targets.boxes[image, : targets.counts[image]].double().tolist()
    boxes = [student.boxes[student_layer, image, q].double().tolist() for q in range(student.num_queries)]
    free = [q for q in range(student.num_queries) if own_roles[q] != POSITIVE]

    def pool(one: int | None) -> list[int]:
        own = [q for q in free if own_roles[q] == HARD and one in (None, own_owners[q])]
        wanted = sum(1 for q in theirs if one in (None, owners[q]))
        near = {
            q: max(giou(boxes[q], box) for box in objects) if one is None else giou(boxes[q], objects[one])
            for q in free
        }
        rest = sorted((q for q in free if q not in own), key=lambda q: -near[q])
        return own + rest[: max(wanted - len(own), 0)] if top_up else own

    pools = {one: pool(one) for one in (range(len(objects)) if scope == "group" else [None])}
    softmax = student.no_object is not None
    balance = 1.0 if softmax else 80 / sum(known)
    table = np.full((len(theirs), student.num_queries), 1e4)
    for row, query in enumerate(theirs):
        target = class_target(teacher, teacher_layer, image, query, known, softmax)
        box = teacher.boxes[teacher_layer, image, query].double().tolist()
        for candidate in pools[owners[query] if scope == "group" else None]:
            entropy = cross_entropy(student, student_layer, image, candidate, target, known, entropy=False)
            table[row, candidate] = (
                balance * entropy.item() + 5 * l1(boxes[candidate], box) - 2 * giou(boxes[candidate], box)
            )
    rows, columns = linear_sum_assignment(table)
    return [(int(c), theirs[r]) for r, c in zip(rows, columns, strict=True) if table[r, c] < 1e4]


def lapd(
    student: DetrView,
    teacher: DetrView,
    targets: Targets,
    student_costs: MatchCosts,
    teacher_costs: MatchCosts,
    *,
    known: list[bool] | None = None,
    scope: str = "group",
    top_up: bool = True,
    hard_weight: float = 1.0,
    hard_box_weight: float = 0.0,
    by_giou: bool = False,
    single_mean: bool = False,
    selection: dict | None = None,
) -> dict[str, Tensor]:
    """The three parts, of all student layers and images."""
    known = known or [True] * teacher.num_classes
    softmax = student.no_object is not None
    parts = {name: torch.zeros((), dtype=torch.float64) for name in ("lapd_class", "lapd_box", "lapd_giou")}
    for layer in range(student.num_layers):
        above = math.floor((layer + 1) * teacher.num_layers / student.num_layers + 0.5)
        teacher_layer = max(above, 1) - 1
        pairs: dict[str, list] = {"positive": [], "hard": []}
        for image in range(student.num_images):
            ours = match(student, targets, student_costs, layer, image)
            theirs = match(teacher, targets, teacher_costs, teacher_layer, image)
            side = select(teacher, targets, theirs, teacher_layer, image, **(selection or {}))
            both = [one for one in ours if one in theirs]
            matched = [(ours[one], theirs[one]) for one in both]
            if scope == "index":
                matched = [(query, query) for query in theirs.values() if query < student.num_queries]
            pairs["positive"] += [(image, mine, its, 1.0) for mine, its in matched]
            found = hard_pairs(
                student,
                teacher,
                targets,
                layer,
                teacher_layer,
                image,
                ours,
                side,
                known,
                scope=scope,
                top_up=top_up,
                selection=selection or {},
            )
            for mine, its in found:
                weight = hard_weight * (max(side[2][its], 0.0) if by_giou else 1.0)
                pairs["hard"].append((image, mine, its, weight))
        number = {kind: max(1, len(some)) for kind, some in pairs.items()}
        if single_mean:
            number = dict.fromkeys(number, max(1, sum(len(some) for some in pairs.values())))
        for kind, some in pairs.items():
            for image, mine, its, weight in some:
                target = class_target(teacher, teacher_layer, image, its, known, softmax)
                share = weight / number[kind]
                kl = cross_entropy(student, layer, image, mine, target, known, entropy=True)
                a = list(student.boxes[layer, image, mine].double())
                b = teacher.boxes[teacher_layer, image, its].double().tolist()
                parts["lapd_class"] = parts["lapd_class"] + share * kl
                share = share * (hard_box_weight if kind == "hard" else 1.0)
                parts["lapd_box"] = parts["lapd_box"] + 5 * share * l1(a, b)
                parts["lapd_giou"] = parts["lapd_giou"] + 2 * share * (1 - giou(a, b))
    return parts
