"""Which classes the outputs of a network stand for, and which outputs are the classes of a data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..shards.label_spaces import LABEL_SPACES, label_space_wnids


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a network's outputs, by wnid, in the order of the outputs."""

    name: str
    wnids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.wnids)

    def indices(self, wnids: Sequence[str]) -> Tensor:
        """Return the output of each class, -1 for a class without one: int64 (len(wnids),)."""
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
    return {space.num_classes: name for name, space in LABEL_SPACES.items()}


@functools.cache
def _read(num_classes: int) -> LabelSpace:
    names = known_label_spaces()
    if num_classes not in names:
        known = ", ".join(f"{number:,} ({name})" for number, name in names.items())
        raise ValueError(f"no label space of {num_classes:,} classes is known; wanted {known}, or a list of the wnids")
    name = names[num_classes]
    return LabelSpace(name, tuple(label_space_wnids(name)))
