"""Networks without content: their names and shapes, in a twentieth of a second and without memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _LeaveUnfilled(TorchFunctionMode):
    """Skips what fills tensors in place: on the meta device they hold nothing, and pretending takes half the time."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def hollow() -> Generator[None]:
    """Build networks on the meta device, where tensors have names and shapes and no content."""
    with torch.device("meta"), _LeaveUnfilled():
        yield
