"""What an inspection found, in words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qskd.reporting.query_pictures import NUMBERED
from qskd.reporting.query_scene import ROLE_NAMES, Scene
from qskd.reporting.tables import number
from qskd.selection.groups import Role
from qskd.selection.statistics import Numbers, RoleNumbers

_FEW = 0.05  # of all objects: below it, that a limit is reached is not worth a word


def sentences(numbers: Numbers) -> Iterator[str]:
    """What the last layer's numbers say, in words."""
    last = numbers.layers[-1]
    hard, positive, easy = (last.roles[role] for role in (Role.HARD_NEGATIVE, Role.POSITIVE, Role.EASY_NEGATIVE))
    if hard.giou is None or hard.score is None:
        yield "The last decoder layer has no hard negatives here."
        return
    yield (
        f"In the last decoder layer an object has one positive and, on average, {number(last.mean_hard, 1)} hard "
        "negatives: queries that lie on it, but were not matched to it."
    )
    giou, score = (_medians(positive, easy, value) for value in ("giou", "score"))
    yield (
        f"They overlap it with a median GIoU of {hard.giou.median:.2f}{giou}, and their best score has a median of "
        f"{hard.score.median:.2f}{score}."
    )
    if hard.foreground is not None and numbers.object_area is not None:
        yield (
            f"{hard.foreground:.0%} of their attention lies within objects{_shares(positive, easy, 'foreground')}, "
            f"which cover {numbers.object_area:.0%} of an image."
        )
    if hard.agreement is not None:
        shares = _shares(positive, easy, "agreement")
        yield f"{hard.agreement:.0%} of them give their object's class the best score of all classes{shares}."


def capped(numbers: Numbers, cap: int | None) -> str | None:
    """A word of caution where the limit of hard negatives of an object cuts off many; None elsewhere."""
    found = numbers.layers[-1].hard_per_object
    if cap is None or len(found) <= cap or not sum(found):
        return None
    share = sum(found[cap:]) / sum(found)
    if share < _FEW:
        return None
    return (
        f"{share:.0%} of the objects have as many hard negatives as the method allows (selection.cap is {cap}): their "
        "other queries count as easy negatives, however much they overlap."
    )


def _medians(positive: RoleNumbers, easy: RoleNumbers, value: str) -> str:
    return _compared({name: getattr(one, value) for name, one in _named(positive, easy)}, lambda x: f"{x.median:.2f}")


def _shares(positive: RoleNumbers, easy: RoleNumbers, value: str) -> str:
    return _compared({name: getattr(one, value) for name, one in _named(positive, easy)}, lambda x: f"{x:.0%}")


def _compared(values: Mapping[str, Any], told: Callable[[Any], str]) -> str:
    words = [f"{name} {told(value)}" for name, value in values.items() if value is not None]
    return f" ({', '.join(words)})" if words else ""


def _named(positive: RoleNumbers, easy: RoleNumbers) -> list[tuple[str, RoleNumbers]]:
    return [("positives", positive), ("easy negatives", easy)]


def counted(scene: Scene, layer: int) -> str:
    """The roles of a layer's queries in words: ``2 positives, 9 hard negatives, 39 easy negatives``."""
    counts = [(scene.count(layer, role), name) for role, name in ROLE_NAMES.items()]
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)


def close_up_words(scene: Scene, layer: int, object_: int) -> str:
    """An object's queries in words: class, the positive's overlap and score, the hard negatives' by number."""
    positive, hard = scene.positive(layer, object_), scene.hard_negatives(layer, object_)
    rows = [("positive", positive)] if positive is not None else []
    rows += [(str(place), query) for place, query in enumerate(hard[:NUMBERED], start=1)]
    words = [
        f"{name}: GIoU {scene.giou[layer, query]:.2f}, {scene.class_names[scene.best[layer, query]]} "
        f"{scene.score[layer, query]:.2f}"
        for name, query in rows
    ]
    more = [f"and {len(hard) - NUMBERED} more hard negatives, thin"] if len(hard) > NUMBERED else []
    return "\n".join([f"{scene.class_names[scene.labels[object_]]}, with best class and score:", *words, *more])
