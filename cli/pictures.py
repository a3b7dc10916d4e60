"""PNG files that commands draw; commands overwrite no other files than these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SOFTWARE = "in21k"  # in the PNG's standard text field `Software`


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError where no picture can go: before the work that it would show."""
    from ..shards.files.output import may_write_file

    may_write_file(path, suffix=".png", what="a PNG picture", is_ours=_is_ours, overwrite=overwrite)


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

    from ..shards.files.atomic import whole_file

    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    with whole_file(path) as aside:
        picture.save(aside, "PNG", pnginfo=info)
