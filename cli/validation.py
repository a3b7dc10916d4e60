"""What the kinds of validation share: a network with the way in which its images are loaded, and the progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .progress import ProgressLine

if TYPE_CHECKING:
    from ..shards import ShardSet
    from ..training import OpenModel, Ranks


class Work:
    """A network and how its images are loaded."""

    def __init__(self, name: str, opened: OpenModel, backend: str, batch_size: int, workers: int | None) -> None:
        self.name, self.opened, self.batch_size, self.workers = name, opened, batch_size, workers
        self._backend = backend
        self._channels_last = opened.run.settings.channels_last if opened.run else False

    def loader_settings(self, shards: ShardSet, ranks: Ranks) -> dict[str, Any]:
        """Return what the loaders of shards are told; pixels come as they are stored, 0..255."""
        opened = self.opened
        # timm's crops are meant for whole photographs: of what is stretched already they would cut the edge off.
        stretched = opened.run is None and shards.info["images"]["resize"] == "squish"
        return {
            "backend": self._backend,
            "batch_size": self.batch_size,
            "image_size": opened.image_size,
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "workers": self.workers,
            "device": ranks.device,
            "channels_last": self._channels_last,
            "crop_pct": None if stretched else opened.crop_pct,
        }

    def amp(self, ranks: Ranks) -> str:
        """Return the precision in which the network computes: that of its training on a GPU, the whole elsewhere."""
        return self.opened.run.settings.amp if self.opened.run and ranks.device.type == "cuda" else "off"


def counted(progress: ProgressLine, num_images: int, ranks: Ranks) -> Callable[[int], None]:
    """Return what is called with the number of images after each batch of a rank."""
    from ..shards.parallel import Progress

    done = 0

    def on_batch(num_done: int) -> None:
        nonlocal done
        done += num_done * ranks.world_size
        progress(Progress(min(1.0, done / num_images), done, 0))

    return on_batch
