"""Signals that ask a run to stop in good order."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they take a machine away


class StopRequests:
    """Notes SIGTERM and SIGUSR1 while the block runs; calling it says whether one came.

    Outside the main thread, where Python hands out no signals, none is noted.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 – the form that Python asks for
        self._came = True

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
