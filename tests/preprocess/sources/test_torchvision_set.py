"""Data sets of torchvision's by name, in the files that it expects, written by the test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.sources.torchvision_set import TorchvisionSet


def write_mnist(folder: Path, num_train: int = 20, num_val: int = 10) -> None:
    """Write MNIST's four files with drawn digits: plain idx, as torchvision reads them once they are unpacked."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name, count in {"train": num_train, "t10k": num_val}.items():
        pixels = draws.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in {"images-idx3": pixels, "labels-idx1": labels}.items():
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


def write_food101(folder: Path, save: Callable[[Path, int], None]) -> None:
    """Write a Food-101 of two classes: one whose parts are called train and test."""
    home = folder / "food-101"
    (home / "meta").mkdir(parents=True)
    for part, numbers in {"train": [0, 1], "test": [2]}.items():
        listed = {word: [f"{word}/{number}" for number in numbers] for word in ("apple_pie", "hot_dog")}
        (home / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for names in listed.values():
            for name in names:
                save(home / "images" / f"{name}.jpg", numbers[0])


def test_parts_by_train_and_classes_with_names(tmp_path: Path, decode: Callable[[bytes], Image.Image]) -> None:
    write_mnist(tmp_path)
    known = TorchvisionSet("MNIST", tmp_path)
    assert known.describe() == {"torchvision": "MNIST", "num_images": {"train": 20, "val": 10}}
    images = known.save_images(tmp_path / "images", ImageSettings(size=32))
    assert [image.split for image in images] == ["train"] * 20 + ["val"] * 10
    assert [image.labels for image in images[:2]] == [("0 - zero",), ("1 - one",)]
    assert decode(images[0].path.read_bytes()).size == (28, 28)  # below the size, so as it is
    before = images[0].path.stat().st_mtime_ns
    assert known.save_images(tmp_path / "images", ImageSettings(size=32)) == images
    assert images[0].path.stat().st_mtime_ns == before


def test_parts_by_split_of_which_test_stands_for_val(
    tmp_path: Path, draw: Callable[..., Image.Image], decode: Callable[[bytes], Image.Image]
) -> None:
    def save(path: Path, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(seed=seed).save(path)

    write_food101(tmp_path, save)
    images = TorchvisionSet("Food101", tmp_path).save_images(tmp_path / "images", ImageSettings(size=16))
    assert [(image.labels[0], image.split) for image in images] == [
        *[("apple_pie", "train")] * 2,
        *[("hot_dog", "train")] * 2,
        *[("apple_pie", "val"), ("hot_dog", "val")],
    ]
    assert decode(images[0].path.read_bytes()).size == (16, 16)


def test_a_killed_run_leaves_whole_files_and_what_a_power_cut_broke_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    write_mnist(tmp_path)
    known, out = TorchvisionSet("MNIST", tmp_path), tmp_path / "images"
    whole = files_of(known.save_images(tmp_path / "whole", ImageSettings(size=32))[0].path.parents[1])
    write, waits = Path.write_bytes, list[int]()

    def dying(self: Path, data: bytes) -> int:
        if len(files_of(out)) == 7:
            write(self, data[:100])
            raise KeyboardInterrupt
        return write(self, data)

    monkeypatch.setattr(os, "fsync", waits.append)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            known.save_images(out, ImageSettings(size=32))
    left = {name: data for name, data in files_of(out).items() if name.endswith(".jpg")}
    assert len(left) == 7  # the eighth does not have its name
    assert left.items() <= whole.items()
    cut, empty, *_ = sorted(out.rglob("*.jpg"))
    write(cut, cut.read_bytes()[:-2])
    write(empty, b"")
    known.save_images(out, ImageSettings(size=32))
    assert files_of(out) == whole
    assert waits == []  # nothing waits for the disk


def test_an_image_that_cannot_be_read_or_stored_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[..., Image.Image]
) -> None:
    def save(path: Path, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(width=48 + 8 * seed, seed=seed).save(path)

    write_food101(tmp_path, save)
    known = TorchvisionSet("Food101", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("in21k.preprocess.images.image.MAX_PIXELS", 50 * 40)
        with pytest.raises(ValueError, match=r"image 0 of val cannot be stored \(too large"):
            known.save_images(tmp_path / "images", ImageSettings(size=16))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match=r"image 0 of train .*exceeds limit") as bomb:
            known.save_images(tmp_path / "other", ImageSettings(size=16))
    (tmp_path / "food-101" / "images" / "apple_pie" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image 1 of train cannot be stored") as broken:
        known.save_images(tmp_path / "images", ImageSettings(size=16))
    assert "\n" not in str(bomb.value) + str(broken.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR1000", "has no data set 'CIFAR1000'; nearest: CIFAR100"),
        ("CIFAR100", "torchvision does not find it there"),
        ("EuroSAT", "has no parts for training and validation"),
        ("EMNIST", "has no part for train"),
    ],
)
def test_what_cannot_be_had_is_one_line_that_says_why(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as actual:
        TorchvisionSet(name, tmp_path)
    assert "\n" not in str(actual.value)
