"""`in21k browse`: what is stored, and what each loader makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from .options import AUGMENT_HELP, PATH, PATH_OR_URL, emit, json_option, overwrite_option, table
from .pictures import check_picture, save_picture


@click.command()
@click.argument("shards", type=PATH_OR_URL)
@click.argument("out", metavar="OUT.png", type=PATH)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Draw only this one; repeatable.")
@click.option("--augment", default="none", show_default=True, metavar="NAME", help=AUGMENT_HELP)
@click.option("--split", default="train", show_default=True, help="train, in the order of an epoch; or val.")
@click.option("--images", default=8, show_default=True, help="Number of images.")
@click.option("--image-size", type=int, help="Side of the images in pixels.  [default: that of the shards]")
@click.option("--seed", default=0, show_default=True, help="Seed of the order and the augmentation.")
@click.option("--epoch", default=0, show_default=True, help="Epoch whose order and augmentation to show.")
@overwrite_option
@json_option
def browse(
    shards: Path | str,
    out: Path,
    backends: tuple[str, ...],
    augment: str,
    split: str,
    images: int,
    image_size: int | None,
    seed: int,
    epoch: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw a contact sheet of SHARDS: the first images of an epoch as stored, above the batches of each backend.

    All backends get the same samples and the same random draws, so their rows have to agree. The mean and the largest
    difference are printed in grey levels (0 to 255).
    """
    import torch

    from ..datapipe import available_backends
    from ..datapipe.browse import browse as collect
    from ..datapipe.browse import draw_sheet
    from ..datapipe.create import choose_backend
    from ..shards import open_dataset

    check_picture(out, overwrite=overwrite)
    logging.getLogger("in21k.datapipe.backends").addFilter(_Once())
    opened = open_dataset(shards)
    if image_size is None and opened.image_size is None:
        raise ValueError(f"{shards}: its images keep their own sizes; give --image-size")
    available = available_backends()
    ready = [name for name in available if available[name] is None and name != "webdataset"]  # which has other samples
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings: dict[str, Any] = {"split": split, "augment": augment, "seed": seed, "epoch": epoch}
    settings["image_size"] = opened.image_size if image_size is None else image_size
    chosen = list(dict.fromkeys(choose_backend(name, device) for name in backends)) or ready
    sheet = collect(opened, chosen, num_images=images, **settings)
    subtitle = f"{split}, augment {augment}, {settings['image_size']} pixels, seed {seed}, epoch {epoch}"
    title = f"{opened.path.resolve().name}: what is stored, and what each backend makes of it"
    save_picture(draw_sheet(sheet, title, subtitle), out)
    differences = sheet.differences
    result = {
        "path": str(out),
        **settings,
        "samples": [{"key": sample.key, "wnid": sample.wnid, "name": sample.name} for sample in sheet.samples],
        "compared_with": next(iter(differences)),
        "backends": [
            {"backend": name, "mean_difference": far.mean, "largest_difference": far.largest}
            for name, far in differences.items()
        ],
        "failed": dict(sheet.failed),
    }
    emit(result, _render, as_json=as_json)


class _Once(logging.Filter):
    """Lets each message through once, as every loader logs the same about the data."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new."""
        message = record.getMessage()
        new = message not in self._messages
        self._messages.add(message)
        return new


def _render(result: dict[str, Any]) -> str:
    head = [f"grey levels from {result['compared_with']}", "mean", "largest"]
    rows = [
        [backend["backend"], f"{backend['mean_difference']:.2f}", f"{backend['largest_difference']}"]
        for backend in result["backends"]
    ]
    drawn = f"{result['path']}: {len(result['samples'])} images of {result['split']}, augment {result['augment']}"
    failed = [f"{name}: failed ({reason})" for name, reason in result["failed"].items()]
    return "\n".join([drawn, table([head, *rows]), *failed])
