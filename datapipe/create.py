"""The backends by name, and the one way to make a loader."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path
from typing import Any

import torch

from ..shards.dataset import ShardSet, ShardSplit, open_dataset
from .catalog import AUTO_ON_CPU, AUTO_ON_GPU, BACKENDS
from .loader import Loader
from .settings import LoaderConfig, LoaderSettings, loader_values

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
    settings: LoaderSettings | None = None,
    training: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **single: Any,
) -> Loader:
    """Make a loader over a split of a shard set.

    shards:     a folder that `in21k shard` made, opened or by its path; or, as a str, a pattern of paths or URLs in the
                webdataset library's notation (`https://host/in21k-train-{000000..000123}.tar`, `pipe:COMMAND`, several
                joined by `::`), which only the backend `webdataset` takes. Pass a folder whose name looks like a
                pattern as a Path.
    split:      its name; or, for an indexed backend, the split itself, which may have labels of its own.
    settings:   see `LoaderSettings`; None: the defaults.
    training:   shuffle, and leave out what fills no global batch; otherwise every sample comes once, in the order of
                the shards. None: True for the split `train` only.
    rank, world_size: of this process among those that share the samples.
    device:     where batches come out; None: the current GPU for dali_gpu, else the CPU.
    dtype:      of the images: float32, float16, bfloat16; or uint8, which goes with normalize None.
    single:     single settings by name, which win over `settings`: `batch_size=256, image_size=224, augment="miil"`.

    The backend of a pattern is webdataset, and needs image_size and, in training, epoch_samples. Augmentations that
    crop, on images that were squished, log a warning. Raises ValueError for what does not fit together.
    """
    values = {**loader_values(settings or LoaderSettings()), **single}
    pattern = shards if isinstance(shards, str) and PATTERN.match(shards) else None
    if pattern is None and not isinstance(shards, ShardSet):
        shards = open_dataset(shards)
    if values["image_size"] is None:
        values["image_size"] = _stored_size(shards)
    if training is None:
        training = (split if isinstance(split, str) else split.name) == "train"
    device = torch.device(device) if device is not None else _default_device(values["backend"])
    if pattern and values["backend"] == "auto":
        values["backend"] = "webdataset"
    values["backend"] = choose_backend(values["backend"], device)
    config = LoaderConfig(**values, training=training, rank=rank, world_size=world_size, device=device, dtype=dtype)
    _check(config)
    if isinstance(shards, ShardSet):
        return _over_shards(shards, split, config)
    if config.backend != "webdataset":
        raise ValueError(
            f"{pattern}: backend {config.backend} needs a folder that `in21k shard` made, with its manifest; patterns "
            "and URLs go with backend webdataset"
        )
    from .backends.webdataset_loader import WebDatasetLoader
    from .backends.webdataset_reading import expand_pattern

    return WebDatasetLoader(expand_pattern(str(pattern)), config)


def _over_shards(shards: ShardSet, split: str | ShardSplit, config: LoaderConfig) -> Loader:
    if config.policy.crops and shards.info["images"]["resize"] == "squish":
        log.warning(
            "augment %s crops what was squished to %s pixels already; for crops prepare the images with "
            "--resize short-edge --size 256",
            config.augment,
            shards.image_size,
        )
    if config.backend != "webdataset":
        return BACKENDS[config.backend].loader_class()(shards.split(split) if isinstance(split, str) else split, config)
    if not isinstance(split, str):
        raise ValueError("backend webdataset follows no manifest, so it cannot tell images apart; take another")
    from .backends.webdataset_loader import WebDatasetLoader
    from .backends.webdataset_reading import shard_urls

    return WebDatasetLoader(shard_urls(shards, split), config)


def _stored_size(shards: str | Path | ShardSet) -> int:
    """Return the side in pixels of the images of a shard set; raises ValueError where they have different sizes."""
    if isinstance(shards, ShardSet) and shards.image_size is not None:
        return shards.image_size
    name = shards.location if isinstance(shards, ShardSet) else shards
    raise ValueError(f"{name}: its images keep their own sizes; give image_size")


def _default_device(backend: str) -> torch.device:
    if backend in ("dali_gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _check(config: LoaderConfig) -> None:
    """Raise ValueError for a setting that the backend or the split cannot follow."""
    backend, epoch_samples = config.backend, config.epoch_samples
    if epoch_samples is not None and backend != "webdataset":
        raise ValueError(
            f"epoch_samples is {epoch_samples}; backend {backend} has an index, and all samples make its epoch: leave "
            "it out, or take backend webdataset"
        )
    if epoch_samples is not None and not config.training:
        raise ValueError(f"epoch_samples is {epoch_samples}; it is for training, and otherwise a split comes whole")
    if backend == "dali_gpu" and config.device.type != "cuda":
        raise ValueError(f"backend dali_gpu hands out batches on a GPU; device is {config.device}")
    if backend != "dali_gpu" and config.hw_decoder_load is not None:
        raise ValueError(
            f"hw_decoder_load is {config.hw_decoder_load}; it goes with backend dali_gpu, and this is {backend}"
        )
