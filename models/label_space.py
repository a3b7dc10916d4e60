"""Which classes the outputs of published ImageNet-21K networks stand for, and where a data set's classes are in them.

The lists are timm's package data. All are of WordNet 3.0, so one class has one wnid in each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

# Number of outputs -> the name of the label space, and timm's list of its wnids. No space has a background class: what
# 21,842 and 21,843 have over fall11's 21,841 are classes of other releases (n04399382; n03931044 and n09859684).
_LISTS = {
    1_000: ("in1k", "imagenet_synsets.txt"),
    10_450: ("winter21p", "imagenet21k_miil_w21_synsets.txt"),
    11_221: ("fall11p", "imagenet21k_miil_synsets.txt"),
    11_821: ("in12k", "imagenet12k_synsets.txt"),
    21_841: ("fall11", "imagenet22k_synsets.txt"),
    21_842: ("fall11-ms", "imagenet22k_ms_synsets.txt"),  # begins with ImageNet-1K's classes
    21_843: ("fall11-goog", "imagenet21k_goog_synsets.txt"),
}


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a network's outputs, by wnid, in the order of the outputs."""

    name: str
    wnids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.wnids)

    def indices(self, wnids: Sequence[str]) -> Tensor:
        """Return for each class its output, -1 where there is none: int64 (len(wnids),)."""
        output_of = {wnid: index for index, wnid in enumerate(self.wnids)}
        return torch.tensor([output_of.get(wnid, -1) for wnid in wnids], dtype=torch.int64)


def label_space_of(source: int | nn.Module) -> LabelSpace:
    """Return the label space of a network, or of a number of outputs.

    A network that timm opened with names of as many classes as it has outputs (a run's folder) has those; all others
    go by their number of outputs.

    Raises ValueError for a number that no known label space has.
    """
    if isinstance(source, int):
        return _read(source)
    num_outputs: int = getattr(source, "num_classes", 0)
    own: Sequence[str] = (getattr(source, "pretrained_cfg", None) or {}).get("label_names") or ()
    if own and len(own) == num_outputs:
        return LabelSpace("its own", tuple(own))
    return _read(num_outputs)


def class_map(space: LabelSpace, wnids: Sequence[str]) -> Tensor:
    """Return which outputs are the classes of a data set: int64 (len(wnids),), for `logits[:, class_map]`.

    Raises ValueError where the label space lacks a class.

    >>> class_map(LabelSpace("three", ("n3", "n1", "n2")), ["n1", "n2"])
    tensor([1, 2])
    """
    indices = space.indices(wnids)
    lacking = [wnid for wnid, index in zip(wnids, indices.tolist(), strict=True) if index < 0]
    if lacking:
        raise ValueError(
            f"the label space {space.name} ({len(space):,} classes) lacks {len(lacking):,} of the data set's "
            f"{len(wnids):,} ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}); wanted a network that "
            "knows them all, or data of its classes alone (in21k preprocess --classes)"
        )
    return indices


def known_label_spaces() -> dict[int, str]:
    """Return the name of each known label space by its number of classes."""
    return {num_classes: name for num_classes, (name, _) in _LISTS.items()}


@functools.cache
def _read(num_classes: int) -> LabelSpace:
    if num_classes not in _LISTS:
        known = ", ".join(f"{number:,} ({name})" for number, (name, _) in _LISTS.items())
        raise ValueError(f"no label space of {num_classes:,} classes is known; wanted {known}, or a list of the wnids")
    name, file = _LISTS[num_classes]
    text = (files("timm.data") / "_info" / file).read_text(encoding="utf-8")
    return LabelSpace(name, tuple(text.split()))
