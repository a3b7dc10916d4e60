"""Backend `torch`: worker processes decode, torchvision resizes and augments; the plain reference."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...shards.dataset import ShardSplit
from ...shards.reader import CorruptSampleError
from ..augment.policy import AugmentPolicy, SamplePlan
from ..batch import CorruptSample, LoaderBatch
from ..feed import Feed, JpegSample
from ..loader import finish_pixels
from ..pixels import decode
from ..plan import PlannedBatch
from ..planned_loader import PlannedLoader
from ..settings import LoaderConfig
from .torch_transforms import transformed
from .worker_batches import from_workers, in_shared_memory

DecodedBatch = tuple[Tensor, NDArray[np.int64], list[CorruptSample]]


class _BatchDataset(Dataset[DecodedBatch | Exception]):
    """Planned batches: (uint8 images B x 3 x S x S, their positions, corrupt samples), or the error of one."""

    def __init__(self, feed: Feed, policy: AugmentPolicy) -> None:
        self._feed = feed
        self._policy = policy

    def __getitem__(self, batch: PlannedBatch) -> DecodedBatch | Exception:
        size = self._policy.image_size
        images = torch.empty(len(batch), 3, size, size, dtype=torch.uint8)

        def write_sample(sample: JpegSample, plan: SamplePlan, row: int) -> None:
            images[row] = transformed(torch.from_numpy(decode(sample.jpeg)).permute(2, 0, 1), plan, size)

        try:
            numbers = self._policy.random_numbers(batch)
            used, bad = self._feed.fill(self._policy, batch, numbers, range(len(batch)), write_sample)
            kept = used >= 0
            images = in_shared_memory(images if kept.all() else images[torch.from_numpy(kept)])
        except (CorruptSampleError, OSError) as error:
            return error  # the main process raises it, as torch would wrap it in the worker's traceback
        return images, used[kept], bad


def _leave_signals(_worker: int) -> None:
    """Ignore signals that reach all processes: the main process handles them, and may still need batches."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class TorchLoader(PlannedLoader):
    """Decode in `workers` processes; uint8 batches go to the device and are normalised there."""

    backend = "torch"

    def __init__(self, split: ShardSplit, settings: LoaderConfig) -> None:
        super().__init__(split, settings)
        self._dataset = _BatchDataset(self._feed, settings.policy)
        self._workers = settings.num_workers

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        settings = self.settings
        on_gpu = settings.device.type == "cuda"
        coming = iter(batches)  # lazily: a batch of remote shards comes once they are in the cache
        first = list(islice(coming, self._workers))
        loader: Any = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=chain(first, coming),  # pyright: ignore[reportArgumentType]
            num_workers=len(first),  # no more than there are batches
            pin_memory=on_gpu,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # or it would draw from the global one, the network's
        )
        with closing(from_workers(loader)) as finished:
            for images, used, bad in finished:
                yield LoaderBatch(finish_pixels(images, settings), self._labels(np.asarray(used)), bad)
