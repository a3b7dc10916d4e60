"""Defaults for folders whose classes are not synsets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.own_folders import Defaults, folder_defaults
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.labelled import read_labelled
from in21k.preprocess.sources.open import open_folder
from in21k.shards.dataset import read_manifest

Draw = Callable[..., Image.Image]


@pytest.fixture
def write_classes(tmp_path: Path, draw: Draw, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write class folders of so many images of a size."""

    def write(sizes: dict[str, int], width: int = 40, height: int = 30) -> Path:
        image = encode(draw(width, height))
        for name, size in sizes.items():
            (tmp_path / "source" / name).mkdir(parents=True)
            for number in range(size):
                (tmp_path / "source" / name / f"{number}.jpg").write_bytes(image)
        return tmp_path / "source"

    return write


def test_the_size_is_the_median_longer_side_and_the_log_says_all(
    write_classes: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = write_classes({"cat": 3, "dog": 2})
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    assert folder_defaults(open_folder(folder)) == Defaults(rare_threshold=0, val_share=0.1, size=40)
    assert "no class is a wnid, so the defaults are --rare-threshold 0, a tenth of each class" in caplog.text
    assert "--size 40" in caplog.text
    assert folder_defaults(open_folder(folder), size=99).size == 99


def test_large_images_have_the_usual_size(write_classes: Callable[..., Path]) -> None:
    assert folder_defaults(open_folder(write_classes({"cat": 2}, 300, 500))).size == 224


def test_one_wnid_keeps_the_defaults_of_imagenet(write_classes: Callable[..., Path]) -> None:
    source = open_folder(write_classes({"cat": 2, "n01440764": 2}))
    assert folder_defaults(source) == Defaults(rare_threshold=500, val_share=None, size=224)


def test_finetune_and_preprocess_hold_back_the_same_images(write_classes: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"one": 1, "two": 2, "ten": 10, "many": 26, "most": 520}
    folder = write_classes(sizes, 8, 8)
    prepared = prepare(
        open_folder(folder),
        tmp_path / "prepared",
        select=SelectSettings(rare_threshold=0, val_share=0.1),
        image=ImageSettings(size=8),
    )
    rows = read_manifest(prepared).to_pylist()
    stored = {f"{row['wnid']}/{row['source_name']}" for row in rows if row["split"] == "val"}
    assert stored == {image.name for image in read_labelled(folder) if image.split == "val"}
    counts = {name: sum(path.startswith(f"{name}/") for path in stored) for name in sizes}
    assert counts == {"one": 0, "two": 1, "ten": 1, "many": 3, "most": 50}
    assert "ten/0.jpg" in stored  # the first by byte order
    assert prepared.info["settings"]["val_share"] == 0.1
