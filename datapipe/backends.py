"""The backends by name, and the one way to make a loader."""

from __future__ import annotations

import difflib
import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from ..shards.dataset import ShardSet, open_dataset
from .loader import Loader, LoaderSettings

log = logging.getLogger(__name__)

BACKENDS = ("dali_gpu", "dali_cpu", "opencv", "torch")


def unavailable(backend: str) -> str | None:
    """Return why a backend cannot be used here and the way out; None where it can."""
    if backend.startswith("dali") and find_spec("nvidia.dali" if find_spec("nvidia") else "nvidia") is None:
        return "DALI is not installed; pip install the extra of your CUDA: dali-cuda130, dali-cuda120 or dali-cuda110"
    if backend == "opencv" and find_spec("cv2") is None:
        return "OpenCV is not installed; `pip install 'in21k[opencv]'`"
    if backend == "dali_gpu" and not torch.cuda.is_available():
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
        wanted = ("dali_gpu", "opencv", "torch") if device.type == "cuda" else ("opencv", "dali_cpu", "torch")
        return next(name for name in wanted if unavailable(name) is None)
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
    split: str,
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
    normalize: str | None = "unit",
    channels_last: bool = False,
    crop_pct: float | None = None,
    max_bad_rate: float = 0.001,
) -> Loader:
    """Make a loader over a split of a shard set: `train` is shuffled, any other split comes whole and in order.

    The arguments are those of `LoaderSettings`; device None: the current GPU for dali_gpu, else the CPU. Augmentations
    that crop, on images that were squished, earn a warning. Raises ValueError for what does not fit together.
    """
    if device is None:
        wants_gpu = backend == "dali_gpu" or (backend == "auto" and torch.cuda.is_available())
        device = f"cuda:{torch.cuda.current_device()}" if wants_gpu and torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    chosen = choose_backend(backend, device)
    if chosen == "dali_gpu" and device.type != "cuda":
        raise ValueError(f"backend dali_gpu hands out batches on a GPU; device is {device}")
    settings = LoaderSettings(
        batch_size=batch_size,
        image_size=image_size,
        augment=augment,
        training=split == "train",
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
    )
    shards = shards if isinstance(shards, ShardSet) else open_dataset(shards)
    if settings.recipe.crops and shards.info["images"]["resize"] == "squish":
        log.warning(
            "augment %s crops what was squished to %s pixels already; for crops prepare the images with "
            "--resize short-edge --size 256",
            augment,
            shards.image_size,
        )
    return _loader_class(chosen)(shards.split(split), settings)


def _loader_class(backend: str) -> type[Loader]:
    if backend == "torch":
        from .torch_workers import TorchLoader

        return TorchLoader
    if backend == "opencv":
        from .opencv_threads import OpenCVLoader

        return OpenCVLoader
    from .dali import DaliCpuLoader, DaliGpuLoader

    return DaliGpuLoader if backend == "dali_gpu" else DaliCpuLoader
