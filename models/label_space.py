"""Which classes the outputs of a network stand for, and which outputs are the classes of a data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..shards.label_spaces import LABEL_SPACES, label_space_wnids
from ..shards.tree import SemanticTree


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


def named_label_space(word: str | Path, num_outputs: int) -> tuple[LabelSpace, SemanticTree | None]:
    """Return the classes of a head by a name, or by a place, and their tree where the place has one.

    word: a known label space (`in21k` is fall11's 21,841 classes); a list of wnids, one a line in the order of the
          outputs; or a tree.json, a `.pth` tree of the reference code, or a folder that has a tree.json.

    Raises ValueError for anything else, and for another number of classes than `num_outputs`.
    """
    tree = None
    name = {"in21k": "fall11"}.get(str(word), str(word))
    if name in LABEL_SPACES:
        space = LabelSpace(name, tuple(label_space_wnids(name)))
    else:
        path = Path(word) / "tree.json" if Path(word).is_dir() else Path(word)
        if not path.is_file():
            raise ValueError(
                f"--classes {word}: no such file; wanted {', '.join(LABEL_SPACES)}, in21k, a list of wnids, or a tree"
            )
        if path.suffix in (".json", ".pth"):
            tree = SemanticTree.load(path)
        wnids = tree.wnids if tree else tuple(path.read_text(encoding="utf-8").split())
        space = LabelSpace("the given classes", wnids)
    if len(set(space.wnids)) < len(space):
        raise ValueError(f"--classes {word}: names a class twice; wanted one for each output")
    if len(space) != num_outputs:
        raise ValueError(f"--classes {word}: has {len(space):,} classes, and the network {num_outputs:,} outputs")
    return space, tree


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
