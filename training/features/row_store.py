"""Rows that come in any order, on disk until all are there: a work file that the next run resumes from."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...shards.files.atomic import check_parent, read_json, write_json
from ...shards.files.lock import FileLock, lock_output
from ...shards.files.output import check_same

SAVE_EVERY_S = 30.0
STAT_BLOCK = 512  # bytes of a block as stat counts them


def _work_paths(out: Path) -> tuple[Path, Path]:
    return out.with_name(f"{out.name}.work"), out.with_name(f"{out.name}.work.json")


def remove_leftover_rows(out: Path) -> None:
    """Remove the work file of a finished output, which a kill left behind; one that another process fills stays."""
    path, state = _work_paths(out)
    if not path.exists():
        return
    lock = FileLock(path)
    try:
        if lock.take(shared=False) and lock.is_of(path):
            state.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    finally:
        lock.release()


class RowStore(AbstractContextManager["RowStore"]):
    """A matrix on disk, filled row by row, and how far the filling is.

    It lies in `<out>.work`, with `<out>.work.json` beside it, and goes with `remove()`; left otherwise, also by a kill,
    it is found again by the next store of the same `provenance`, and refused by one of another unless `overwrite`.

    out:        the file that will be made from it.
    provenance: what shapes the rows, as JSON values.
    shape:      (N, D).
    dtype:      of the rows.
    overwrite:  discard rows of another `provenance`.
    place:      what the last `save` that counts was given; None for a new store.
    """

    def __init__(
        self,
        out: Path,
        provenance: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: str,
        *,
        overwrite: bool = False,
    ) -> None:
        self._out, self._overwrite = out, overwrite
        self._path, self._state = _work_paths(out)
        self._provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._saved = time.monotonic()
        self.place: dict[str, int] | None = None

    def __enter__(self) -> Self:
        """Take the work file, or make it, with room on the disk for every row.

        Raises ValueError where another process has it, where it holds rows of another `provenance`, and where the disk
        has too little room; OSError where it fills meanwhile.
        """
        check_parent(self._out)
        self._lock = lock_output(self._path, self._out, "making it")
        num_bytes = self._shape[0] * (self._shape[1] * self._dtype.itemsize + 1)
        try:
            self.place = self._place_reached(num_bytes)
            if self.place is None:
                self._state.unlink(missing_ok=True)
                os.ftruncate(self._lock.descriptor, 0)  # what an earlier one left must not look filled
            self._reserve(num_bytes)
        except (OSError, ValueError):
            if not self._state.exists():
                self._path.unlink()
            self._lock.release()
            raise
        self._rows = np.memmap(self._path, self._dtype, "r+", 0, self._shape)
        self._filled = np.memmap(self._path, np.uint8, "r+", self._rows.nbytes, self._shape[0])
        return self

    def _place_reached(self, num_bytes: int) -> dict[str, int] | None:
        """Return the place that the stored rows reach; None if there are none, or none to keep."""
        size = os.fstat(self._lock.descriptor).st_size
        if not size or not self._state.is_file():
            return None
        state = read_json(self._state)
        if self._overwrite and state["provenance"] != self._provenance:
            return None
        check_same(self._path, state["provenance"], self._provenance, "discard the unfinished features")
        return state["place"] if size == num_bytes else None

    def _reserve(self, num_bytes: int) -> None:
        """Have the disk keep room for every row: a mapped file that finds none later ends the process by a signal."""
        lacking = num_bytes - os.fstat(self._lock.descriptor).st_blocks * STAT_BLOCK
        free = shutil.disk_usage(self._out.parent).free
        if lacking > free:
            raise ValueError(
                f"{self._path}: takes {lacking / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of the disk are free; make "
                "room and start the same command again, or write to another disk"
            )
        try:
            os.posix_fallocate(self._lock.descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise OSError(error.errno, os.strerror(error.errno or 0), str(self._path)) from error
            # A file system that keeps no room: that there is enough of it now has to do.
            os.ftruncate(self._lock.descriptor, num_bytes)

    def put(self, numbers: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Fill some rows."""
        self._rows[numbers] = rows
        self._filled[numbers] = 1

    def save(self, place: Mapping[str, int], *, now: bool = False) -> None:
        """Have everything so far count, and remember the place that it was reached at; now and then, or `now`."""
        if now or time.monotonic() - self._saved > SAVE_EVERY_S:
            self._rows.flush()
            self._filled.flush()
            write_json(self._state, {"provenance": self._provenance, "place": dict(place)})
            self._saved = time.monotonic()

    @property
    def num_filled(self) -> int:
        """How many rows are filled."""
        return int(np.count_nonzero(self._filled))

    def part(self, start: int, stop: int) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Return which rows of a range are filled, bool (stop - start,), and the filled ones."""
        filled = self._filled[start:stop] == 1
        return filled, self._rows[start:stop][filled]

    def remove(self) -> None:
        """Remove the work: it is done."""
        self._state.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        del self._rows, self._filled
        self._lock.release()
