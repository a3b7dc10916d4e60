"""Shards to batches: the order of an epoch, the backends, and a place in the epoch that can be saved."""

from .create import available_backends, create_loader
from .loader import Loader

__all__ = ["Loader", "available_backends", "create_loader"]
