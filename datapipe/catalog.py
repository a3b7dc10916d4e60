"""The backends and augmentations by name, for loaders, command options, `doctor` and tests.

A new one is declared here once. The module imports nothing heavy, so that the help of a command can read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a training image before it is handed out.

    crops:            crop a random window of 8 to 100 % of the area, and flip one image in two.
    erases:           fill a random box of half the side with one colour.
    uses_randaugment: apply two of RandAugment's operations.
    """

    summary: str
    crops: bool = False
    erases: bool = False
    uses_randaugment: bool = False


AUGMENTATIONS = {
    "none": Augmentation(summary="the whole image, stretched, or with crop_pct the middle"),
    "miil": Augmentation(summary="the whole image, cutout, RandAugment", erases=True, uses_randaugment=True),
    "inception": Augmentation(summary="random resized crop, flip", crops=True),
    "inception-ra": Augmentation(summary="random resized crop, flip, RandAugment", crops=True, uses_randaugment=True),
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An implementation of the loader.

    loader:     the class, as `module:name` below `in21k.datapipe`.
    requires:   the package that it needs besides torch.
    missing:    the error if that is not installed, with the way out.
    needs_gpu:  hands out batches on a GPU only.
    is_indexed: follows the plan of an epoch: exact order, resume, checksums.
    """

    loader: str
    requires: str | None = None
    missing: str = ""
    needs_gpu: bool = False
    is_indexed: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether the package that it needs is installed."""
        parts = self.requires.split(".") if self.requires else []
        return all(find_spec(".".join(parts[: number + 1])) for number in range(len(parts)))

    def loader_class(self) -> Any:
        """Import and return the loader's class."""
        module, _, name = self.loader.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)


_NO_DALI = "DALI is not installed; pip install the extra of your CUDA: dali-cuda130, dali-cuda120 or dali-cuda110"

BACKENDS = {
    "dali_gpu": Backend(
        loader="backends.dali_loader:DaliGpuLoader", requires="nvidia.dali", missing=_NO_DALI, needs_gpu=True
    ),
    "dali_cpu": Backend(loader="backends.dali_loader:DaliCpuLoader", requires="nvidia.dali", missing=_NO_DALI),
    "opencv": Backend(
        loader="backends.opencv_loader:OpenCVLoader",
        requires="cv2",
        missing="OpenCV is not installed; `pip install 'in21k[opencv]'`",
    ),
    "torch": Backend(loader="backends.torch_loader:TorchLoader"),
    "webdataset": Backend(
        loader="backends.webdataset_loader:WebDatasetLoader",
        requires="webdataset",
        missing="the webdataset library is not installed; `pip install 'in21k[webdataset]'`",
        is_indexed=False,
    ),
}
AUTO_ON_GPU, AUTO_ON_CPU = ("dali_gpu", "opencv", "torch"), ("opencv", "dali_cpu", "torch")  # fastest first (measured)
INDEXED = tuple(name for name, backend in BACKENDS.items() if backend.is_indexed)
