"""The features of a whole split, by any number of ranks, at the rows where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distributed import Ranks
from ..inference.layers import FeatureExtractor
from ..precision import autocast
from .row_store import RowStore


class RowLoader(Protocol):
    """Yields a rank's batches: images uint8 (B, 3, H, W), and their rows int64 (B,); as many on each rank."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def state_dict(self) -> dict[str, int]:
        """Return the place in the split, of all ranks together."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a place."""
        ...


def collect_features(
    extractor: FeatureExtractor,
    loader: RowLoader,
    store: RowStore | None,
    *,
    normalize: Callable[[Tensor], Tensor],
    num_features: int,
    dtype: torch.dtype = torch.float16,
    amp: str = "off",
    ranks: Ranks | None = None,
    on_rows: Callable[[int], object] | None = None,
) -> None:
    """Fill a store with the features of every sample, resuming where an earlier call stopped.

    extractor: on the ranks' device.
    store:     on rank 0, which gathers the features of all ranks; None on the others.
    normalize: makes of uint8 images what the network takes.
    num_features: of an image.
    dtype:     of the features.
    amp:       `off`, `bf16` or `fp16`.
    on_rows:   called with the number of rows after each batch, on rank 0.

    Raises ValueError for a feature that is not finite in the dtype.
    """
    ranks = ranks or Ranks()
    place = ranks.from_first(lambda: store.place if store else None)
    if place is not None:
        loader.load_state_dict(place)
    extractor.eval()
    try:
        for images, rows in loader:
            features = torch.empty(0, num_features, dtype=dtype, device=ranks.device)
            if len(rows):
                with torch.inference_mode(), autocast(ranks.device, amp):
                    features = extractor(normalize(images.to(ranks.device, non_blocking=True))).to(dtype)
            numbers, values = (part.numpy() for part in ranks.gather_rows(rows, features))
            if store:
                _check_finite(values)
                store.put(numbers, values)
                place = loader.state_dict()
                store.save(place)
                if on_rows:
                    on_rows(len(numbers))
    finally:
        if store and place is not None:
            store.save(place, now=True)


def _check_finite(features: NDArray[Any]) -> None:
    num_good = int(np.isfinite(features).all(axis=1).sum())
    if num_good < len(features):
        raise ValueError(
            f"{len(features) - num_good} of {len(features)} images have features that are not finite, or too large for "
            f"{features.dtype} (over {np.finfo(features.dtype).max:,.0f}); give --dtype float32, or --amp off"
        )
