"""Dividing images into splits: always the same way, every class in every split, look-alikes together."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qskd.data.image_facts import alike
from qskd.errors import ConfigError

_ROUNDS = 4  # of exchanges, at most
_TRIED = 500  # groups that are exchanged, and what each is exchanged for: with more, chance balances by itself
_ABSENT = 1e6  # what a class costs that a split has nothing of: more than any surplus
_WORTH = 1e-6  # gain of an exchange, above rounding


def divide(
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """The split of every image, by iterative stratification of groups of images with a fixed number of images a split.

    Each split holds its share of the images, to the next whole number, unless groups are too large for that. Large
    groups are placed first, then those with rare classes; each goes to the split that, of those with room, still lacks
    most of what the group holds. Groups of one size are then exchanged between splits where that brings the objects of
    each class nearer to the shares. The order of groups comes from their names and the seed alone, so the answer does
    not depend on the order of the images.

    Args:
        names: a name for each image, each once.
        labels: the class indices of its objects.
        shares: of the images, for each split; they add up to 1. A class with a single group goes to the first.
        seed: another one gives another division.
        groups: images of one number stay together; None keeps nothing together.

    Raises:
        ConfigError: the shares do not add up to 1, or there are fewer groups than splits.

    Source: after Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data". There the number
        of images follows from the objects, so that splits served last get many images with few objects; here it is
        given, and a group is placed by all of its classes.
    """
    check_shares(shares)
    group_of = np.array(groups if groups is not None else range(len(names)), dtype=np.int64)
    members = _members(names, group_of, seed)
    if len(members) < len(shares):
        raise ConfigError(f"{len(members)} independent images cannot make {len(shares)} splits.")
    sizes = np.array([len(images) for images in members])
    counts = _counts(labels, members)
    part = np.array(list(shares.values()))
    chosen = _placed(counts, sizes, part)
    _exchange(chosen, counts, sizes, part)
    answer = [""] * len(names)
    for images, split in zip(members, chosen, strict=True):
        for image in images:
            answer[image] = list(shares)[split]
    return answer


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ConfigError for shares of splits that cannot be."""
    is_whole = abs(sum(shares.values()) - 1) < 1e-6
    if len(shares) < 2 or not is_whole or not all(0 < share < 1 for share in shares.values()):
        told = ", ".join(f"{name} {share:.6g}" for name, share in shares.items())
        raise ConfigError(f"The shares of the splits are {told}; expected at least two, each above 0, that make 1.")


def _members(names: Sequence[str], group_of: NDArray[np.int64], seed: int) -> list[list[int]]:
    """The images of every group, groups in an order that names and seed decide."""
    found: dict[int, list[int]] = {}
    for image in sorted(range(len(names)), key=lambda one: names[one]):
        found.setdefault(int(group_of[image]), []).append(image)
    key = {group: hashlib.sha256(f"{seed}|{names[images[0]]}".encode()).digest() for group, images in found.items()}
    return [found[group] for group in sorted(found, key=lambda one: key[one])]


def _counts(labels: Sequence[Sequence[int]], members: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """[G, K] what each group holds: objects of each class, all objects, images without any; rare columns first."""
    classes = max((label for image in labels for label in image), default=-1) + 1
    counts = np.zeros((len(members), classes + 2))
    for row, images in enumerate(members):
        for image in images:
            np.add.at(counts[row], list(labels[image]), 1)
        counts[row, -2] = counts[row, :classes].sum()
        counts[row, -1] = sum(not labels[image] for image in images)
    totals = counts.sum(axis=0)
    order = np.argsort(totals, kind="stable")
    return np.take(counts, order[totals[order] > 0], axis=1)


def _placed(counts: NDArray[np.float64], sizes: NDArray[np.int64], part: NDArray[np.float64]) -> NDArray[np.int64]:
    """[G] the split of each group. Of a rare class, each split gets one group before any gets two, the first first."""
    room = _rooms(part, int(sizes.sum()))
    totals = counts.sum(axis=0)
    wanted = np.outer(part, totals)  # [S, K]
    have = np.zeros_like(wanted)
    chosen = np.zeros(len(sizes), dtype=np.int64)
    rarest = (counts > 0).argmax(axis=1)
    for group in np.lexsort((rarest, -sizes)):  # stable: of equals in the order of names and seed
        lacking = ((1 - have / wanted) * counts[group] / totals).sum(axis=1)  # [S]
        is_new = have[:, rarest[group]] == 0
        is_first = is_new & (np.arange(len(part)) == 0)
        fits = room >= sizes[group] if (room >= sizes[group]).any() else room == room.max()
        best = np.lexsort((-lacking, ~is_new, ~is_first, ~fits))[0]
        chosen[group] = best
        room[best] -= sizes[group]
        have[best] += counts[group]
    return chosen


def _rooms(part: NDArray[np.float64], images: int) -> NDArray[np.int64]:
    """[S] whole numbers of images that add up, each within one of its share."""
    exact = part * images
    room = np.floor(exact + 1e-6).astype(np.int64)
    room[np.argsort(room - exact, kind="stable")[: images - room.sum()]] += 1
    return room


def _exchange(
    chosen: NDArray[np.int64], counts: NDArray[np.float64], sizes: NDArray[np.int64], part: NDArray[np.float64]
) -> None:
    """Let groups of one size change places, each with the best of the others, while splits come nearer to ``part``."""
    wanted = np.outer(part, counts.sum(axis=0))  # [S, K]
    have = np.stack([counts[chosen == split].sum(axis=0) for split in range(len(part))])
    for _ in range(_ROUNDS):
        before = chosen.copy()
        for group in range(min(len(chosen), _TRIED)):
            mine = chosen[group]
            others = np.flatnonzero((sizes == sizes[group]) & (chosen != mine))[:_TRIED]
            if not len(others):
                continue
            theirs, more = chosen[others], counts[others] - counts[group]
            gain = _distance(have[theirs], wanted[theirs], theirs == 0)
            gain -= _distance(have[theirs] - more, wanted[theirs], theirs == 0)
            gain += _distance(have[mine], wanted[mine], mine == 0)
            gain -= _distance(have[mine] + more, wanted[mine], mine == 0)
            best = int(gain.argmax())
            if gain[best] > _WORTH:
                have[mine] += more[best]
                have[theirs[best]] -= more[best]
                chosen[[group, others[best]]] = theirs[best], mine
        if (before == chosen).all():
            return


def _distance(have: NDArray[np.float64], wanted: NDArray[np.float64], is_first: NDArray[np.bool_]) -> Any:
    """[...] how far from what is wanted, [..., K], splits are; what is absent from the first counts twice."""
    absent = (have == 0).sum(axis=-1) * np.where(is_first, 2 * _ABSENT, _ABSENT)
    return ((have / wanted - 1) ** 2).sum(axis=-1) + absent


def look_alikes(hashes: Sequence[bytes], most: int) -> list[int]:
    """A group number for each image: those whose hashes differ in at most so many bits are together."""
    parent = list(range(len(hashes)))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for first, second, _ in alike(hashes, hashes, most):
        parent[root(first)] = root(second)
    return [root(one) for one in range(len(hashes))]
