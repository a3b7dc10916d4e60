"""Backend `torch`: Pillow decodes and torchvision resizes in worker processes; the plain reference."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..shards.dataset import ShardSplit
from ..shards.reader import CorruptSampleError, SampleReader
from .loader import Loader, LoaderSettings
from .pixels import decode_squished, normalize_pixels


class _BatchDataset(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Batches by their positions: (uint8 images B x 3 x S x S, labels int64), or what is wrong with one."""

    def __init__(self, split: ShardSplit, image_size: int) -> None:
        self._split = split
        self._image_size = image_size
        self._reader = SampleReader(split)

    def __getitem__(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor] | Exception:
        try:
            images = torch.stack([self._image(int(position)) for position in positions])
        except (CorruptSampleError, OSError) as error:
            return error  # raised by the main process: torch would wrap it in the worker's traceback
        return images, torch.from_numpy(self._split.labels[positions].astype(np.int64))

    def _image(self, position: int) -> Tensor:
        jpeg = self._reader.image(position)
        try:
            return decode_squished(jpeg, self._image_size)
        except ValueError as error:
            raise CorruptSampleError(position, str(error)) from error


class TorchLoader(Loader):
    """Decode in `workers` processes; pixels are normalised on the device, where batches arrive as uint8."""

    backend = "torch"

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        super().__init__(split, settings)
        self._dataset = _BatchDataset(split, settings.image_size)
        ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._workers = settings.num_workers(ranks_per_node)
        self._running: Any = None

    def _stream(self, batches: Iterable[NDArray[np.int64]]) -> Generator[tuple[Tensor, Tensor]]:
        settings = self.settings
        on_gpu = settings.device.type == "cuda"
        batches = list(batches)
        workers = min(self._workers, len(batches))
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            pin_memory=on_gpu,  # pyright: ignore[reportArgumentType]
        )
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        # Forked workers must find no dead object to collect: a DALI pipeline, for one, waits for threads they lack.
        gc.collect()
        self._running = iter(loader)
        try:
            for batch in self._running:
                if isinstance(batch, Exception):
                    raise batch
                images, labels = batch
                images = images.to(settings.device, non_blocking=True)
                images = normalize_pixels(images, settings.normalize, settings.dtype)
                yield images.contiguous(memory_format=memory_format), labels.to(settings.device, non_blocking=True)
        finally:
            self.close()

    def close(self) -> None:
        """Stop the worker processes."""
        if self._running is not None:
            shutdown = getattr(self._running, "_shutdown_workers", None)
            if shutdown:
                shutdown()
            self._running = None
