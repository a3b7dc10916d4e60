"""Encode an image in a fresh process, so that a crash of its decoder ends no other work."""

from __future__ import annotations

import multiprocessing
import signal
from functools import cache
from typing import Any

from ...shards.files.parallel import CRASHES
from .image import EncodedImage, ImageSettings, RejectedImageError, store_image

CRASH = "crash"
WAY_OUT = "what was done is kept; if it happens again at the same image, name it in --exclude, with a new output"
TRIES = 2


def store_alone(name: str, data: bytes, settings: ImageSettings) -> EncodedImage:
    """Store an image as `store_image` does, in a process that has decoded nothing before.

    An image that ends such a process by SIGSEGV or SIGFPE twice is rejected with the reason `crash`. Raises
    ChildProcessError, naming the image, for any other signal or exit code.
    """
    names: list[str] = []
    while len(names) < TRIES:
        outcome = _outcome(name, data, settings)
        if isinstance(outcome, EncodedImage):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
        if outcome not in CRASHES:
            raise ChildProcessError(f"{name}: its decoder ended a fresh process by {outcome.name}; {WAY_OUT}")
        names.append(outcome.name)
    raise RejectedImageError(CRASH, f"its decoder ended fresh processes by {' and '.join(names)}")


def _outcome(name: str, data: bytes, settings: ImageSettings) -> EncodedImage | Exception | signal.Signals:
    """Return the result of an image in a process of its own: the JPEG, its error, or the signal that ended it."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_store_into, args=(theirs, data, settings))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode < 0:
            return signal.Signals(-process.exitcode)
        raise ChildProcessError(f"{name}: its decoder ended a fresh process ({process.exitcode})") from None
    finally:
        ours.close()
        process.join()


@cache
def _context() -> Any:
    """Return the context that forks processes from a server that has imported the decoders but not used them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _store_into(connection: Any, data: bytes, settings: ImageSettings) -> None:
    try:
        connection.send(store_image(data, settings))
    except Exception as error:
        connection.send(error)
