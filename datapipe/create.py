"""The backends by name, and the one way to make a loader."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

import torch

from ..shards.dataset import ShardSet, ShardSplit, open_dataset
from ..shards.normalize import Normalize
from .catalog import AUTO_ON_CPU, AUTO_ON_GPU, BACKENDS
from .loader import Loader, LoaderSettings

log = logging.getLogger(__name__)

# What names shards, and not their folder: commands, several in a row, braces, a tar.
PATTERN = re.compile(r"pipe:|.*(::|\{|\.(tar|tgz)(\.\w+)?(\?.*)?$)", re.DOTALL)


def unavailable(backend: str) -> str | None:
    """Return why a backend cannot be used here and the way out; None where it can."""
    if not BACKENDS[backend].is_installed:
        return BACKENDS[backend].missing
    if BACKENDS[backend].needs_gpu and not torch.cuda.is_available():
        return "no GPU is seen here; take dali_cpu, or look into the driver with nvidia-smi"
    return None


def available_backends() -> dict[str, str | None]:
    """Return per backend why it cannot be used here, None where it can."""
    return {backend: unavailable(backend) for backend in BACKENDS}


def choose_backend(backend: str, device: torch.device) -> str:
    """Return the backend that a name means; `auto`: dali_gpu on a GPU, else the fastest that is installed.

    Raises ValueError for a name that is none and for a backend that cannot be used here.
    """
    if backend == "auto":
        fastest_first = AUTO_ON_GPU if device.type == "cuda" else AUTO_ON_CPU
        chosen = next(name for name in fastest_first if unavailable(name) is None)
        log.debug("backend auto on device %s: %s", device, chosen)
        return chosen
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, BACKENDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"backend {backend!r} is unknown; known: auto, {', '.join(BACKENDS)}{hint}")
    reason = unavailable(backend)
    if reason:
        raise ValueError(f"backend {backend}: {reason}")
    return backend


def create_loader(
    shards: str | Path | ShardSet,
    *,
    split: str | ShardSplit,
    training: bool | None = None,
    backend: str = "auto",
    batch_size: int,
    image_size: int,
    augment: str = "none",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    normalize: Normalize | None = "unit",
    channels_last: bool = False,
    crop_pct: float | None = None,
    max_bad_rate: float = 0.001,
    hw_decoder_load: float | None = None,
    epoch_samples: int | None = None,
) -> Loader:
    """Make a loader over a split of a shard set.

    shards:         a folder that `in21k shard` made, opened or by its path; or, as a str, a pattern of paths or URLs in
                    the webdataset library's notation (`https://host/in21k-train-{000000..000123}.tar`, `pipe:COMMAND`,
                    several joined by `::`), which the backend `webdataset` alone takes. A folder whose name looks like
                    a pattern goes in as a Path.
    split:          its name; or the split itself, of an indexed backend, which may have labels of its own.
    training:       shuffle, and leave out what fills no global batch; otherwise every sample comes once, in the order
                    of the shards. None: the split `train` alone is for training.
    epoch_samples:  of webdataset in training: how many samples make an epoch, of all ranks together; None: as many as
                    the folder holds (a pattern needs the number).

    The other arguments are those of `LoaderSettings`; device None: the current GPU for dali_gpu, else the CPU. Backend
    `auto`: dali_gpu on a GPU, else the fastest installed one that has a plan; webdataset for a pattern. Augmentations
    that crop, on images that were squished, earn a warning. Raises ValueError for what does not fit together.
    """
    pattern = shards if isinstance(shards, str) and PATTERN.match(shards) else None
    if device is None:
        wants_gpu = backend == "dali_gpu" or (backend == "auto" and torch.cuda.is_available())
        device = f"cuda:{torch.cuda.current_device()}" if wants_gpu and torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if training is None:
        training = (split if isinstance(split, str) else split.name) == "train"
    chosen = choose_backend("webdataset" if pattern and backend == "auto" else backend, device)
    if pattern and chosen != "webdataset":
        raise ValueError(
            f"{pattern}: backend {chosen} wants a folder that `in21k shard` made, with its manifest; patterns and URLs "
            "go with backend webdataset"
        )
    if epoch_samples is not None:
        _check_epoch_samples(epoch_samples, chosen, training=training)
    if chosen == "dali_gpu" and device.type != "cuda":
        raise ValueError(f"backend dali_gpu hands out batches on a GPU; device is {device}")
    if chosen != "dali_gpu" and hw_decoder_load is not None:
        raise ValueError(f"hw_decoder_load is {hw_decoder_load}; it goes with backend dali_gpu, and this is {chosen}")
    settings = LoaderSettings(
        batch_size=batch_size,
        image_size=image_size,
        augment=augment,
        training=training,
        seed=seed,
        rank=rank,
        world_size=world_size,
        workers=workers,
        device=device,
        dtype=dtype,
        normalize=normalize,
        channels_last=channels_last,
        crop_pct=crop_pct,
        max_bad_rate=max_bad_rate,
        hw_decoder_load=hw_decoder_load,
    )
    if pattern:
        from .backends.webdataset_loader import WebDatasetLoader
        from .backends.webdataset_reading import expand_pattern

        return WebDatasetLoader(expand_pattern(pattern), settings, epoch_samples)
    shards = shards if isinstance(shards, ShardSet) else open_dataset(shards)
    if settings.policy.crops and shards.info["images"]["resize"] == "squish":
        log.warning(
            "augment %s crops what was squished to %s pixels already; for crops prepare the images with "
            "--resize short-edge --size 256",
            augment,
            shards.image_size,
        )
    if chosen == "webdataset":
        if not isinstance(split, str):
            raise ValueError("backend webdataset follows no manifest, so it cannot tell images apart; take another")
        from .backends.webdataset_loader import WebDatasetLoader
        from .backends.webdataset_reading import shard_urls

        return WebDatasetLoader(shard_urls(shards, split), settings, epoch_samples)
    return BACKENDS[chosen].loader_class()(shards.split(split) if isinstance(split, str) else split, settings)


def _check_epoch_samples(epoch_samples: int, backend: str, *, training: bool) -> None:
    if backend != "webdataset":
        raise ValueError(
            f"epoch_samples is {epoch_samples}; backend {backend} has an index, and all samples make its epoch: leave "
            "it out, or take backend webdataset"
        )
    if not training:
        raise ValueError(f"epoch_samples is {epoch_samples}; it is for training, and otherwise a split comes whole")
    if epoch_samples < 1:
        raise ValueError(f"epoch_samples is {epoch_samples}; wanted 1 or more")
