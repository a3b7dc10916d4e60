"""Shards to batches: the order of an epoch, the backends, and a place in the epoch that can be saved."""

from .backends import available_backends, create_loader
from .loader import Loader
from .mix import MixSettings, create_mix

__all__ = ["Loader", "MixSettings", "available_backends", "create_loader", "create_mix"]
