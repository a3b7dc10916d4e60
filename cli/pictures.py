"""PNG files that commands draw: they know their own again, and overwrite nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SOFTWARE = "in21k"  # in the PNG's standard text field `Software`


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError where no picture can go: before the work that it would show."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; wanted the name of a PNG")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are PNG files; give it a name that ends in .png")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return
    if not _is_ours(path):
        raise ValueError(f"{path}: exists and was not drawn by in21k, so it is not overwritten; give another name")
    if not overwrite:
        raise ValueError(f"{path}: exists; give another name, or --overwrite to replace an older picture")


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return opened.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):
        return False


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    from ..shards.files import whole_file

    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    with whole_file(path) as aside:
        picture.save(aside, "PNG", pnginfo=info)
