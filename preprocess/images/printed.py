"""Turn what C libraries print about an image into warnings."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from . import jpeg

STDERR = 2
# How libpng's and OpenCV's warnings begin. OpenCV's tag holds the time and is cut, as it differs from run to run.
_LIBPNG = re.compile(r"libpng (warning|error): ")
_OPENCV_TAG = re.compile(r"\[ ?(WARN|ERROR):[^\]]*\] (global )?")


_lock = threading.Lock()


@contextmanager
def printed_as_warnings() -> Generator[None]:
    """Turn what decoders print on stderr into warnings; other lines are printed at the end.

    The file descriptor of the whole process is captured. Where stderr is closed, nothing is captured.
    """
    with _lock:  # with two threads at a time, the second would restore the first one's file as stderr
        try:
            kept = os.dup(STDERR)
        except OSError:
            yield
            return
        with os.fdopen(os.memfd_create("printed"), "rb") as caught:
            os.dup2(caught.fileno(), STDERR)
            try:
                yield
            finally:
                os.dup2(kept, STDERR)
                os.close(kept)
                caught.seek(0)
                _warn(caught.read().decode(errors="replace"))


def _warn(printed: str) -> None:
    for line in printed.splitlines(keepends=True):
        message = _OPENCV_TAG.sub("", line.strip(), count=1)
        if message != line.strip() or _LIBPNG.match(message) or message.startswith(jpeg.WARNINGS):
            warnings.warn(message, stacklevel=3)
        else:
            os.write(STDERR, line.encode())
