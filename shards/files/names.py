"""Names of files that a table or `dataset.json` gives: each is checked here before a path is made of it."""

from __future__ import annotations

import re

ARCHIVE_NAMES = "train/NAME.tar or val/NAME.tar, NAME of 1 to 200 characters of [A-Za-z0-9._-]"
_ARCHIVE = re.compile(r"(train|val)/[A-Za-z0-9._-]{1,200}\.tar")
_INDEX = re.compile(r"(train|val)/[A-Za-z0-9._-]{1,200}\.idx")
_TABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def archive_name(name: str, where: str) -> str:
    """Return the name of a tar, relative to its data set; raises ValueError, naming `where` it stands, for any other.

    >>> archive_name("train/in21k-train-000000.tar", "dataset.json")
    'train/in21k-train-000000.tar'
    """
    if not _ARCHIVE.fullmatch(name):
        raise ValueError(f"{where}: names the archive {name[:200]!r}; wanted {ARCHIVE_NAMES}")
    return name


def file_name(name: str, where: str) -> str:
    """Return the name of a table, an index or a tar, relative to its data set; raises ValueError for any other."""
    if not any(pattern.fullmatch(name) for pattern in (_TABLE, _INDEX, _ARCHIVE)):
        raise ValueError(
            f"{where}: names the file {name[:200]!r}; wanted a plain name, or one in train/ or val/ that ends in .tar "
            "or .idx"
        )
    return name
