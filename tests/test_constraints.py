"""The versions that `make setup` installs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES_PIXELS = {
    "cykooz-resizer",
    "numpy",
    "nvidia-dali-cuda110",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "opencv-python-headless",
    "pillow",
    "safetensors",
    "simplejpeg",
    "torch",
    "torchvision",
}


def test_each_constraint_is_one_version_and_all_that_shapes_pixels_or_weights_has_one() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([\w-]+)==\d[\w.]*", line) for line in lines if not line.startswith("#")]
    assert all(pins), lines
    assert {pin[1] for pin in pins if pin} >= SHAPES_PIXELS
