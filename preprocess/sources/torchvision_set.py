"""A data set of torchvision's by name, from a folder that holds it, as labelled image files."""

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
from ..images import jpeg
from ..images.image import DECODER_ERRORS, ImageSettings, RejectedImageError, store_image
from .labelled import LabelledImage

# What the argument that chooses a part may be called, and what each part, the first that the data set knows.
_PARTS = {
    "train": {"train": (True,), "split": ("train", "trainval", "train-standard"), "image_set": ("train",)},
    "val": {"train": (False,), "split": ("val", "valid", "test"), "image_set": ("val", "test")},
}


class TorchvisionSet:
    """A data set that torchvision knows, of one label an image. Nothing is downloaded.

    name:   its class in `torchvision.datasets`, such as CIFAR100.
    folder: the `root` that the class takes.

    The parts are its train and val; where there is no val, test is taken for it. Raises ValueError for an unknown name,
    a data set without such parts, and where torchvision finds nothing in the folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        from torchvision import datasets

        known = [each for each in datasets.__all__ if each.isidentifier()]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise ValueError(f"torchvision has no data set {name!r}; nearest: {', '.join(near or known)}")
        self.name = name
        self._parts = {split: _open_part(name, getattr(datasets, name), folder, split) for split in _PARTS}

    def describe(self) -> dict[str, Any]:
        """Return what tells it from others: its parts' sizes, as JSON values."""
        return {"torchvision": self.name, "num_images": {split: len(part) for split, part in self._parts.items()}}

    def save_images(self, folder: Path, settings: ImageSettings) -> list[LabelledImage]:
        """Store the images as JPEG files below a folder; those that are there already are not made again.

        They are stored as `settings` say, and so not changed a second time when they are packed. A run that is killed
        leaves whole files; a power cut may leave broken ones, as nothing waits for the disk. One without its end is
        made again; what else a decoder finds wrong packing rejects, or names in the manifest, as of any image. Raises
        ValueError for a data set whose targets are no class numbers, and for an image that cannot be read or stored.
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
        """Return the images as `save_images` does, without storing any: their paths lead nowhere."""
        return [listed for listed, _ in self._read()]

    def _read(self) -> Iterator[tuple[LabelledImage, Any]]:
        """Yield each image, its path below the folder that it would be stored in, and its pixels."""
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
            f"torchvision:{self.name}: image {number} of {split} cannot be stored ({reason}); mend it, or give a list "
            "of `path label` lines that leaves it out"
        )


def _open_part(name: str, kind: Any, folder: Path, split: str) -> Any:
    takes = inspect.signature(kind.__init__).parameters
    argument = next((each for each in _PARTS[split] if each in takes), None)
    if argument is None:
        raise ValueError(f"torchvision:{name}: has no parts to train and to validate on; give class folders or a list")
    options = {"download": False} if "download" in takes else {}
    error = None
    for value in _PARTS[split][argument]:
        try:
            return kind(str(folder), **{argument: value}, **options)
        except ValueError as unknown_part:
            error = unknown_part
        except (OSError, RuntimeError, ImportError) as missing:
            first = (str(missing).splitlines() or [type(missing).__name__])[0]
            raise ValueError(f"torchvision:{name}:{folder}: torchvision finds it not there ({first})") from missing
    raise ValueError(f"torchvision:{name}: has no part for {split} ({error})")


def _labels_of(part: Any) -> Sequence[str] | None:
    """Return the names of a data set's classes, where it has one for each: of several names the first."""
    names = getattr(part, "classes", None)
    if not isinstance(names, (list, tuple)):
        return None
    plain = [each if isinstance(each, str) else str(each[0]) for each in names]
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
    """Tell whether a JPEG file is there, up to its end mark."""
    try:
        with path.open("rb") as file:
            file.seek(-len(jpeg.END), os.SEEK_END)
            return file.read() == jpeg.END
    except OSError:  # there is none, or it is shorter than the mark
        return False
