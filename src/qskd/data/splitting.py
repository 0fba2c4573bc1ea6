"""Dividing images into splits: always the same way, every class in every split, look-alikes together."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qskd.data.image_facts import alike
from qskd.errors import ConfigError


def divide(
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """The split of every image, by iterative stratification of groups of images.

    Classes are served from rare to frequent: each group that holds the class goes to the split that still wants most
    of it. The order of groups comes from their names and the seed alone, so the answer does not depend on the order of
    the images.

    Args:
        names: a name for each image, each once.
        labels: the class indices of its objects.
        shares: of the images, for each split; they add up to 1.
        seed: another one gives another division.
        groups: images of one number stay together; None keeps nothing together.

    Raises:
        ConfigError: the shares do not add up to 1, or there are fewer groups than splits.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data".
    """
    _check_shares(shares)
    group_of = np.array(groups if groups is not None else range(len(names)), dtype=np.int64)
    members = _members(names, group_of, seed)
    if len(members) < len(shares):
        raise ConfigError(f"{len(members)} independent images cannot make {len(shares)} splits.")
    counts = _counts(labels, members)  # [G, C + 1]: objects of each class, then images
    wanted = np.outer(list(shares.values()), counts.sum(axis=0))  # [splits, C + 1]
    chosen = np.full(len(members), -1)
    for column in [*np.argsort(counts[:, :-1].sum(axis=0), kind="stable"), counts.shape[1] - 1]:
        holders = np.flatnonzero((counts[:, column] > 0) & (chosen < 0))
        for group in sorted(holders, key=lambda one: -counts[one, column]):
            best = max(range(len(shares)), key=lambda split: (wanted[split, column], wanted[split, -1]))
            chosen[group] = best
            wanted[best] -= counts[group]
    answer = [""] * len(names)
    for images, split in zip(members, chosen, strict=True):
        for image in images:
            answer[image] = list(shares)[split]
    return answer


def _check_shares(shares: Mapping[str, float]) -> None:
    is_whole = abs(sum(shares.values()) - 1) < 1e-6
    if len(shares) < 2 or not is_whole or not all(0 < share < 1 for share in shares.values()):
        raise ConfigError(f"The shares of the splits are {dict(shares)}; expected at least two above 0 that make 1.")


def _members(names: Sequence[str], group_of: NDArray[np.int64], seed: int) -> list[list[int]]:
    """The images of every group, groups in an order that names and seed decide."""
    found: dict[int, list[int]] = {}
    for image in sorted(range(len(names)), key=lambda one: names[one]):
        found.setdefault(int(group_of[image]), []).append(image)
    key = {group: hashlib.sha256(f"{seed}|{names[images[0]]}".encode()).digest() for group, images in found.items()}
    return [found[group] for group in sorted(found, key=lambda one: key[one])]


def _counts(labels: Sequence[Sequence[int]], members: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    classes = max((label for image in labels for label in image), default=-1) + 1
    counts = np.zeros((len(members), classes + 1))
    for row, images in enumerate(members):
        counts[row, -1] = len(images)
        for image in images:
            np.add.at(counts[row], list(labels[image]), 1)
    return counts


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
