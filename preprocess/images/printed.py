"""What C libraries print of an image, as warnings."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from . import jpeg

STDERR = 2
# What libpng and OpenCV print before their warnings; OpenCV's tag tells the time, and would differ from run to run.
_LIBPNG = re.compile(r"libpng (warning|error): ")
_OPENCV_TAG = re.compile(r"\[ ?(WARN|ERROR):[^\]]*\] (global )?")


_lock = threading.Lock()


@contextmanager
def printed_as_warnings() -> Generator[None]:
    """Turn what decoders print on stderr into warnings; what others print there meanwhile is passed on at the end.

    It is caught at the file descriptor, which is the whole process's; where that is closed nothing happens.
    """
    with _lock:  # one thread at a time: the last would else leave the first one's file as stderr
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
                _tell(caught.read().decode(errors="replace"))


def _tell(printed: str) -> None:
    for line in printed.splitlines(keepends=True):
        message = _OPENCV_TAG.sub("", line.strip(), count=1)
        if message != line.strip() or _LIBPNG.match(message) or message.startswith(jpeg.WARNINGS):
            warnings.warn(message, stacklevel=3)
        else:
            os.write(STDERR, line.encode())
