"""A class's name, in any script, and its identifier, which keys, files and tables use."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_PLAIN = 55  # with `-` and 8 digits 64, which leaves room in keys of 96 bytes
_HASHED = re.compile(rf"[A-Za-z0-9_-]{{{_MAX_PLAIN}}}-[0-9a-f]{{8}}")


def class_name(name: str) -> str:
    """Return a name in Unicode's normal form NFC: some file systems split `é` into two letters.

    Raises ValueError for an empty name, and for one that is not UTF-8.
    """
    if not name:
        raise ValueError("the name of a class is empty")
    try:
        name.encode()
    except UnicodeEncodeError:
        escaped = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise ValueError(f"the class name '{escaped}' is not UTF-8; rename it, for example with convmv") from None
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=65_536)
def class_id(name: str) -> str:
    """Return the identifier of a class: its NFC name, where that has up to 55 characters of `[A-Za-z0-9_-]`.

    In any other name each other character becomes `_`; the result is cut to 55 characters, and `-` and the first 8 hex
    digits of the NFC name's sha256 are added. The identifier of an identifier is itself. Raises as `class_name`.

    >>> class_id("n01440764"), class_id("golden retriever")
    ('n01440764', 'golden_retriever-41f9a46a')
    """
    name = class_name(name)
    plain = _UNSAFE.sub("_", name)[:_MAX_PLAIN]
    if plain == name or _HASHED.fullmatch(name):
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def class_labels(labels: Iterable[str]) -> dict[str, str]:
    """Return the class name of each label: the label itself, or where all are numbers, padded with zeros.

    Padded numbers sort by value. Labels that padding would make equal, such as 7 and 07, are not padded.

    >>> class_labels(["hot dog", "9"]), class_labels(["9", "10"])
    ({'hot dog': 'hot dog', '9': '9'}, {'9': '09', '10': '10'})
    """
    names = list(dict.fromkeys(labels))
    if all(name.isascii() and name.isdigit() for name in names):
        width = max(map(len, names), default=0)
        filled = [name.zfill(width) for name in names]
        if len(set(filled)) == len(names):
            return dict(zip(names, filled, strict=True))
    return dict(zip(names, names, strict=True))
