"""What both sides of a comparison of features have to share, and which training rows a probe is shown."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...shards.tree import SemanticTree
from .feature_file import FeatureFile

# What two files have to have been made with alike; how the computing was done (amp, dtype) may differ.
ALIKE = ("fingerprint", "layer", "num_features", "image_size", "crop_pct", "mean", "std")
HELD_BACK, MAX_HELD_BACK = 0.1, 50  # of a class: a tenth, as many as 21K-P validates with at most
# Of all classes, where that leaves one of each: they tell top-1 to 0.2 points, and every candidate is tried on them.
MAX_ROWS = 50_000

Indices = NDArray[np.int64]


def check_pair(train: FeatureFile, test: FeatureFile) -> None:
    """Raise ValueError where two files do not hold features of one kind, or are one file, or one is empty."""
    differ = [
        f"{name} {train.provenance.get(name)!r} and {test.provenance.get(name)!r}"
        for name in ALIKE
        if train.provenance.get(name) != test.provenance.get(name)
    ]
    if differ:
        raise ValueError(
            f"{train.path} and {test.path} hold features of two kinds ({'; '.join(differ)}); make both alike"
        )
    same = [name for name in ("shards", "split") if train.provenance.get(name) == test.provenance.get(name)]
    if len(same) == 2:
        raise ValueError(f"{train.path} and {test.path} hold the same images; the test has to be of another split")
    for file in (train, test):
        if not len(file):
            raise ValueError(f"{file.path}: holds no rows; wanted at least one")


def wnids_of(train: FeatureFile, test: FeatureFile, tree: SemanticTree | None) -> list[str]:
    """Return the classes to tell apart, by wnid: those of the tree, else those of either file in order."""
    return list(tree.wnids[: tree.num_image_classes]) if tree else sorted({*train.classes[0], *test.classes[0]})


class Draw(NamedTuple):
    """Training rows (int64, ascending): those that settings are chosen on, and the shots."""

    held_back: Indices
    shots: Indices


def draw(labels: Indices, shots: int | None, seed: int) -> Draw:
    """Draw a held-back part of the training rows and, from the others, the shots of each class.

    Held back is a tenth of each class, at least 1 image and at most 50, or fewer where all classes together would have
    over 50,000 (of 21K-P's 11,221 classes 4); nothing of a class of one image. One seed's draws of fewer shots are part
    of those of more.

    labels: the class of each row.
    shots:  rows of each class, or all that it has where they are fewer; None: all that are not held back.
    """
    philox: Any = np.random.Philox(np.random.SeedSequence(seed))  # raw draws, whose stream NumPy promises to keep
    order = np.lexsort([philox.random_raw(len(labels)), labels])
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(labels)) - starts[labels[order]]  # of each row in its class, at random
    begin = _num_held_back(counts)[labels[order]]
    is_shot = place >= begin if shots is None else (place >= begin) & (place < begin + shots)
    return Draw(np.sort(order[place < begin]), np.sort(order[is_shot]))


def shots_at_hand(labels: Indices) -> Indices:
    """Return how many rows each class has that are not held back, int64, ascending; classes without rows do not count.

    >>> shots_at_hand(np.array([0, 0, 0, 2])).tolist()
    [1, 2]
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return np.sort(counts - _num_held_back(counts))


def _num_held_back(counts: Indices) -> Indices:
    """Return how many rows of each class are held back, of how many it has."""
    most = max(1, min(MAX_HELD_BACK, MAX_ROWS // max(1, int((counts > 1).sum()))))
    return np.where(counts > 1, np.clip(np.rint(HELD_BACK * counts).astype(np.int64), 1, most), 0)
