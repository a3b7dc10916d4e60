"""How closely the backends agree in pixels where images shrink, as README states it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from in21k.datapipe import Loader
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import ShardSet
from in21k.shards.pack import ShardSettings, pack

from .conftest import BACKENDS

MakeLoader = Callable[..., Loader]
SIDES = (300, 420)
PER_KIND = 4
# Grey levels, against backend torch. DALI repeats an image's edge where its filter reaches beyond; the others leave out
# what is not there. At the outermost row and column an eighth of the filter reaches beyond, so that an eighth of the
# pixel is the very edge there; in a corner it is 15 sixty-fourths.
MEAN, INNER, EDGE, CORNER, ROUNDING = 0.5, 2, 255 / 8, 255 * 15 / 64, 2


@pytest.fixture(scope="module")
def large_set(
    tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., bytes], write_archive: Callable[..., Path]
) -> ShardSet:
    """Noise, smooth images, and smooth ones with an edge of two black or white rows and columns, as they are."""
    folder, draws = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    images: dict[str, bytes] = {}
    for number in range(3 * PER_KIND):
        shape = SIDES if number % 2 else SIDES[::-1]
        coarse = Image.fromarray(draws.integers(0, 256, (9, 9, 3), np.uint8))
        pixels = np.array(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))
        if number // PER_KIND == 0:
            pixels = draws.integers(0, 256, (*shape, 3), np.uint8)
        elif number // PER_KIND == 1:
            pixels[:2] = pixels[:, :2] = 255 * (number % 2)
            pixels[-2:] = pixels[:, -2:] = 255 * (1 - number % 2)
        images[f"n01503061_{number}.JPEG"] = encode(Image.fromarray(pixels), quality=98, subsampling=0)
    archive = write_archive(folder / "raw.tar", {"n01503061": images})
    settings = {"select": SelectSettings(rare_threshold=2, val_per_class=0), "image": ImageSettings(resize="none")}
    return pack(prepare(open_raw_tar(archive), folder / "prepared", **settings), folder / "shards", ShardSettings())


def images_of(loader: Loader) -> Tensor:
    """Return all images, N x S x S x 3, grey levels."""
    return torch.cat([images for images, _ in loader]).permute(0, 2, 3, 1)


@pytest.mark.parametrize("image_size", [40, 100, 224, 290])
@pytest.mark.parametrize("settings", [{}, {"crop_pct": 0.875}, {"augment": "inception"}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_as_closely_as_readme_states(
    make: MakeLoader, large_set: ShardSet, backend: str, settings: dict[str, object], image_size: int
) -> None:
    options = {"shards": large_set, "training": False, "batch_size": 4, "image_size": image_size, "normalize": None}
    expected, actual = (images_of(make(name, **options, **settings)) for name in ("torch", backend))
    apart = (actual - expected).abs()
    assert apart[:, 1:-1, 1:-1].mean() < MEAN
    apart = apart.amax(dim=-1)
    assert apart[:, 1:-1, 1:-1].max() <= INNER
    if backend != "dali_cpu" or "crop_pct" in settings:  # a centre crop leaves the border out
        assert apart.max() <= INNER
        return
    assert apart.max() <= CORNER + ROUNDING
    assert max(side.max() for side in (apart[:, 0, 1:-1], apart[:, -1, 1:-1], apart[:, 1:-1, 0])) <= EDGE + ROUNDING
    if not settings and image_size < 100:
        assert apart[:, 0].max() > 10  # or README says too much
