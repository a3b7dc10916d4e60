"""Runs a coroutine in a thread with its own event loop; callers can wait for it, or cancel it at any await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Runs `make()` from now on; `future` gets its result or exception (asyncio.CancelledError after `stop`)."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Result]], name: str = "in21k-fetch") -> None:
        self.future: Future[Result] = Future()
        self._make = make
        self._begun = Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._thread = Thread(target=self._run, name=name, daemon=True)  # Python does not wait for it at exit
        self._thread.start()

    def _run(self) -> None:
        try:
            result = asyncio.run(self._main())
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        finally:
            self._begun.set()

    async def _main(self) -> Result:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._begun.set()
        return await self._make()

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the event loop, if it still runs."""
        self._begun.wait()
        if self._loop:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Cancel the coroutine and end the thread."""
        self.call(lambda: self._task and self._task.cancel())
        self._thread.join()


def run(make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine to its end, even inside a running event loop; raises what it raises."""
    background = Background(make)
    try:
        return background.future.result()
    finally:
        background.stop()
