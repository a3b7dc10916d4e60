"""Choosing: which classes are kept, which of their images are for validation, and what each is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..shards.sample import make_keys
from .archive import Member


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """What is kept, and what of it is for validation.

    rare_threshold:  a class is kept when it has more images than this, unreadable ones included.
    val_per_class:   the first so many images of a class, by byte order of their names, are for validation.
    """

    rare_threshold: int = 500
    val_per_class: int = 50

    def __post_init__(self) -> None:
        for name in ("rare_threshold", "val_per_class"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; wanted 0 or more")

    def keeps(self, num_raw: int) -> bool:
        """Tell whether a class of so many images is kept."""
        return num_raw > self.rare_threshold


def split_members(
    wnid: str, members: Sequence[Member], val_per_class: int, others: Sequence[str] = ()
) -> dict[str, list[tuple[str, Member]]]:
    """Return per split the class's (key, member), by key; `members` come in byte order, `others` as in make_keys."""
    keyed = list(zip(make_keys(wnid, [member.name for member in members], others), members, strict=True))
    return {"train": sorted(keyed[val_per_class:]), "val": sorted(keyed[:val_per_class])}
