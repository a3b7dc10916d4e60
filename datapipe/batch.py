"""A batch on its way from a backend to the consumer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CorruptSample(NamedTuple):
    """A corrupt sample."""

    position: int
    reason: str


class LoaderBatch(NamedTuple):
    """A batch of a backend: images (B x 3 x H x W), labels (int64 B), and the corrupt samples met while it was made."""

    images: Tensor
    labels: Tensor
    bad: list[CorruptSample]
