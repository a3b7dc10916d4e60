"""The functions that decode and augment on a CPU: OpenCV's if it is installed, else torchvision's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def cpu_transforms() -> Any:
    """Return the module `opencv_transforms`, or without OpenCV `torch_transforms`.

    Both have `decode_and_transform(sample, plan, out)` and `apply_ops(pixels, ops)`.
    """
    if find_spec("cv2"):
        from . import opencv_transforms

        return opencv_transforms
    from . import torch_transforms

    return torch_transforms
