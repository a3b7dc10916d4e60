"""What a sample is: a key, an image and a class index; and how keys and checksums are made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

MAX_KEY_BYTES = 96
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class Sample(NamedTuple):
    """One training example: `key` names it in the whole data set, `image` holds JPEG bytes."""

    key: str
    image: bytes
    class_index: int


def checksum(data: bytes) -> str:
    """Return the first 16 hex digits of the sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def make_keys(wnid: str, names: Iterable[str], others: Collection[str] = ()) -> list[str]:
    """Return a unique key for each original file name of one class, in their order.

    A key is the file's stem where that begins with `<wnid>_`, else `<wnid>_<stem>`: at most 96 characters of
    `[A-Za-z0-9_-]`, others become `_`. (Readers split at the first dot; DALI's index breaks on spaces.)

    `others` are the data set's classes whose name begins with `<wnid>_`: a key that would begin with one of them, and
    so might be that class's too, gets a `-` after `<wnid>_`.

    >>> make_keys("n01440764", ["n01440764_26.JPEG", "my cat.jpg", "my_cat.png"])
    ['n01440764_26', 'n01440764_my_cat', 'n01440764_my_cat-2']
    """
    keys: list[str] = []
    taken: set[str] = set()
    last: dict[str, int] = {}  # per stem the number that its latest key took: those below are taken
    for name in names:
        stem = name.rpartition("/")[2]
        stem = stem.rpartition(".")[0] or stem
        base = _UNSAFE.sub("_", stem if stem.startswith(f"{wnid}_") else f"{wnid}_{stem}")
        while any(base.startswith(f"{other}_") for other in others):
            base = f"{wnid}_-{base[len(wnid) + 1 :]}"
        key, number = base[:MAX_KEY_BYTES], last.get(base, 1)
        while key in taken:
            number += 1
            suffix = f"-{number}"
            key = base[: MAX_KEY_BYTES - len(suffix)] + suffix
        taken.add(key)
        last[base] = number
        keys.append(key)
    return keys
