"""Checking a file of `torch.save` before torch reads it."""

from __future__ import annotations

import io
import zipfile
from typing import IO

MOST_UNPACKED, SPARE_BYTES = 2, 2**24  # of a zip's size


def check_unpacked(file: IO[bytes]) -> None:
    """Raise ValueError for a zip that unpacks to far more than its size; torch compresses nothing.

    Files written before torch 1.6 are not zips and hold nothing compressed. The position in `file` does not change.
    """
    position = file.tell()
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        num_bytes = file.seek(0, io.SEEK_END)
    finally:
        file.seek(position)
    if unpacked > MOST_UNPACKED * num_bytes + SPARE_BYTES:
        raise ValueError(
            f"its {num_bytes / 1e6:,.1f} MB would unpack to {unpacked / 1e6:,.1f} MB; wanted a file of torch.save's"
        )
