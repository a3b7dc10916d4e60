"""The settings of a loader, each declared once: for `create_loader`, for trainings, and for `--set`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from ..shards.files.parallel import default_workers
from ..shards.normalize import Normalize, mean_std
from .augment.policy import AugmentPolicy
from .catalog import AUGMENTATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
# The largest whole numbers that make sense; beyond them a number is a typing error.
_MOST = {"batch_size": 1_000_000, "image_size": 8192, "workers": 1024, "epoch_samples": 10**12}


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What a user chooses about a loader; raises ValueError for a value that makes no sense."""

    way_out: ClassVar[str] = ""
    """How messages about a setting end; `{name}` stands for its name."""

    backend: str = "auto"
    """The loader's backend, by name; `auto`: dali_gpu on a GPU, else the fastest one that is installed."""
    batch_size: int = 64
    """Images per rank and batch."""
    image_size: int | None = None
    """Side of the square images in pixels; None: the size that the shards hold."""
    augment: str = "none"
    """`none`: stretch to image_size; `miil`: then cutout and two operations of RandAugment; `inception`: random crop
    and flip; `inception-ra`: then RandAugment."""
    crop_pct: float | None = None
    """Without augmentation, as in validation: the shorter side is resized to image_size / crop_pct and the middle
    taken, 0 < x <= 1; None: the whole image, stretched."""
    normalize: Normalize | None = "unit"
    """`unit`: pixels 0..1; `imagenet`: less ImageNet's mean, over its standard deviation; or these two by number, as
    [0.5, 0.5], each a number or one for each channel. Loaders also take None: pixels 0..255."""
    channels_last: bool = False
    """Lay images out channels last, and in training weights too; convolutions on a GPU in half precision prefer it."""
    workers: int | None = None
    """Decode threads or processes per rank; None: one for each core, shared by the ranks of a machine. Shapes no
    result."""
    hw_decoder_load: float | None = None
    """Of dali_gpu: the share of the JPEGs that the GPU's hardware decoder gets, where it has one, 0 <= x <= 1; None:
    0.65. `in21k bench-loader --sweep` measures which is fastest."""
    max_bad_rate: float = 0.001
    """An epoch stops past this share of corrupt samples, 0 <= x <= 1. The share is taken of at least 10,000 samples, or
    of a whole smaller split; three corrupt samples are always tolerated unless it is 0."""
    epoch_samples: int | None = None
    """How many images make an epoch of training, of all ranks together, for backend `webdataset` alone; None: as many
    as the shards hold."""
    seed: int = 0
    """Of the order of samples and every random draw; in training of the weights too."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise self.refusal(name, "1 or more" if value < 1 else f"at most {most:,}")
        if self.augment not in AUGMENTATIONS:
            raise self.refusal("augment", f"one of {', '.join(AUGMENTATIONS)}")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise self.refusal("crop_pct", "more than 0 and at most 1")
        for name in ("max_bad_rate", "hw_decoder_load"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise self.refusal(name, "0 to 1")
        if not 0 <= self.seed < 2**63:
            raise self.refusal("seed", "0 to 2^63 - 1")
        if self.normalize is not None:
            mean_std(self.normalize)  # which checks it

    def refusal(self, name: str, wanted: str) -> ValueError:
        """Return the error for a setting with a value that makes no sense."""
        return ValueError(f"{name} is {getattr(self, name)!r}; wanted {wanted}{self.way_out.format(name=name)}")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(LoaderSettings):
    """The settings of a loader with everything that `create_loader` adds: what its backend works by.

    training:   shuffle, and leave out what fills no global batch; otherwise every sample once, in shard order.
    rank, world_size: see `EpochPlan`.
    device:     where batches come out.
    dtype:      float32, float16, bfloat16; or uint8, which goes with normalize None.
    """

    image_size: int = 0
    training: bool = True
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rank < max(1, self.world_size):
            raise self.refusal("rank", f"0 to {self.world_size - 1}")
        if self.crop_pct is not None and self.augment != "none":
            raise ValueError(f"crop_pct goes with augment none; augment is {self.augment!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype}; known: {', '.join(map(str, DTYPES))}")
        if self.dtype == torch.uint8 and self.normalize is not None:
            raise ValueError(f"dtype uint8 holds pixels as they are; normalize is {self.normalize!r}, wanted None")

    @property
    def policy(self) -> AugmentPolicy:
        """How images are augmented."""
        return AugmentPolicy(image_size=self.image_size, augment=self.augment, crop_pct=self.crop_pct, seed=self.seed)

    @property
    def num_workers(self) -> int:
        """Decode threads or processes of this rank: `workers`, or its share of the node's cores."""
        return self.workers or max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def loader_values(settings: LoaderSettings) -> dict[str, Any]:
    """Return the values of a loader's settings by name, whatever else `settings` holds."""
    return {declared.name: getattr(settings, declared.name) for declared in fields(LoaderSettings)}
