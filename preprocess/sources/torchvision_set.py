"""A torchvision data set, by its name and the folder that holds it, as labelled image files."""

from __future__ import annotations

import difflib
import inspect
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...shards.files.atomic import TEMPORARY
from ...shards.image_files import DECODER_ERRORS
from ..images import jpeg
from ..images.image import ImageSettings, RejectedImageError, store_image
from .labelled import LabelledImage

# The names that the argument for the part has, and its values: the first value that the data set accepts is taken.
_PARTS = {
    "train": {"train": (True,), "split": ("train", "trainval", "train-standard"), "image_set": ("train",)},
    "val": {"train": (False,), "split": ("val", "valid", "test"), "image_set": ("val", "test")},
}


class TorchvisionSet:
    """A torchvision data set of one label an image. Nothing is downloaded.

    name:   its class in `torchvision.datasets`, such as CIFAR100.
    folder: the `root` that the class takes.

    The parts are its train and val; a data set without val is validated on test. Raises ValueError for an unknown
    name, a data set without such parts, and a folder in which torchvision does not find the data set.
    """

    def __init__(self, name: str, folder: Path) -> None:
        from torchvision import datasets

        known = [kind for kind in datasets.__all__ if kind.isidentifier()]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise ValueError(f"torchvision has no data set {name!r}; nearest: {', '.join(near or known)}")
        self.name = name
        self._parts = {split: _open_part(name, getattr(datasets, name), folder, split) for split in _PARTS}

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data set, its name and the sizes of its parts, as JSON values."""
        return {"torchvision": self.name, "num_images": {split: len(part) for split, part in self._parts.items()}}

    def save_images(self, folder: Path, settings: ImageSettings) -> list[LabelledImage]:
        """Store the images as JPEG files below a folder; files of an earlier run are kept.

        They are resized by `settings`, so that packing does not change them again. A killed run leaves only whole
        files. A power cut may truncate files, as writes are not synced; a file without its end mark is written again.
        Raises ValueError for a data set whose targets are not class numbers, and for an image that cannot be read or
        stored.
        """
        for split in self._parts:
            (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[LabelledImage] = []
        for listed, picture in self._read():
            path = (folder / listed.name).absolute()
            if not _has_its_end(path):
                try:
                    _save(picture, path, settings)
                except RejectedImageError as error:
                    raise self._broken(int(path.stem), path.parent.name, error) from error
            images.append(listed._replace(path=path))
        return images

    def list_labels(self) -> list[LabelledImage]:
        """Return the images as `save_images` does, without storing any; their paths do not exist."""
        return [listed for listed, _ in self._read()]

    def _read(self) -> Iterator[tuple[LabelledImage, Any]]:
        """Yield each image, with its path below the folder of `save_images`, and its pixels."""
        for split, part in self._parts.items():
            labels = _labels_of(part)
            for number in range(len(part)):
                try:
                    picture, target = part[number]
                except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
                    raise self._broken(number, split, error) from error
                if not isinstance(target, int):
                    raise ValueError(
                        f"torchvision:{self.name}: its targets are {type(target).__name__}; wanted a data set of one "
                        "class an image (write a list of `path label,label` lines for others)"
                    )
                name = f"{split}/{number:08d}.jpg"
                label = labels[target] if labels else str(target)
                yield LabelledImage(Path(name), name, (label,), split), picture

    def _broken(self, number: int, split: str, error: Exception) -> ValueError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ValueError(
            f"torchvision:{self.name}: image {number} of {split} cannot be stored ({reason}); repair it, or give a "
            "list of `path label` lines without it"
        )


def _open_part(name: str, kind: Any, folder: Path, split: str) -> Any:
    takes = inspect.signature(kind.__init__).parameters
    argument = next((name for name in _PARTS[split] if name in takes), None)
    if argument is None:
        raise ValueError(f"torchvision:{name}: has no parts for training and validation; give class folders or a list")
    options = {"download": False} if "download" in takes else {}
    error = None
    for value in _PARTS[split][argument]:
        try:
            return kind(str(folder), **{argument: value}, **options)
        except ValueError as unknown_part:
            error = unknown_part
        except (OSError, RuntimeError, ImportError) as missing:
            first = (str(missing).splitlines() or [type(missing).__name__])[0]
            raise ValueError(f"torchvision:{name}:{folder}: torchvision does not find it there ({first})") from missing
    raise ValueError(f"torchvision:{name}: has no part for {split} ({error})")


def _labels_of(part: Any) -> Sequence[str] | None:
    """Return the first name of each class; None where the data set has no names, or equal ones."""
    names = getattr(part, "classes", None)
    if not isinstance(names, (list, tuple)):
        return None
    plain = [name if isinstance(name, str) else str(name[0]) for name in names]
    return plain if len(set(plain)) == len(plain) else None


def _save(image: Any, path: Path, settings: ImageSettings) -> None:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    aside = path.with_name(f"{path.name}{TEMPORARY}")
    try:
        aside.write_bytes(store_image(buffer.getvalue(), settings).data)
    except OSError as error:
        error.filename = error.filename or str(aside)
        raise
    aside.replace(path)


def _has_its_end(path: Path) -> bool:
    """Tell whether a JPEG file exists and ends with its end mark."""
    try:
        with path.open("rb") as file:
            file.seek(-len(jpeg.END), os.SEEK_END)
            return file.read() == jpeg.END
    except OSError:  # it does not exist, or is shorter than the mark
        return False
