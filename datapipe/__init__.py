"""Shards to batches: the order of an epoch, the backends, and a position in the epoch that can be saved."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .create import available_backends, create_loader
    from .loader import Loader
    from .settings import LoaderSettings

__all__ = ["Loader", "LoaderSettings", "available_backends", "create_loader"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch takes seconds, and a command's help needs `catalog` alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import create

    return getattr(create, name)
