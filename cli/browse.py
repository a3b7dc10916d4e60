"""`in21k browse`: what is stored, and what each loader makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from .options import PATH, PATH_OR_URL, emit, json_option, overwrite_option, table
from .pictures import check_picture, save_picture


@click.command()
@click.argument("shards", type=PATH_OR_URL)
@click.argument("out", metavar="OUT.png", type=PATH)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this one; may be given several times.")
@click.option(
    "--augment", default="none", show_default=True, metavar="NAME", help="none, miil, inception, inception-ra."
)
@click.option("--split", default="train", show_default=True, help="train, in an epoch's order; or val.")
@click.option("--images", default=8, show_default=True, help="How many.")
@click.option("--image-size", type=int, help="Pixels.  [default: the size that the shards hold]")
@click.option("--seed", default=0, show_default=True, help="Of the order and the augmentation.")
@click.option("--epoch", default=0, show_default=True, help="Of the order and the augmentation.")
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
    """Draw a contact sheet of SHARDS: the first images of an epoch as stored, over what each backend hands out.

    All backends have the same samples and the same draws, so the rows have to agree: how far they are apart is printed
    in grey levels (0 to 255), on average and where it is most.
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
        "samples": [{"key": each.key, "wnid": each.wnid, "name": each.name} for each in sheet.samples],
        "compared_with": next(iter(differences)),
        "backends": [
            {"backend": name, "mean_difference": far.mean, "largest_difference": far.largest}
            for name, far in differences.items()
        ],
        "failed": dict(sheet.failed),
    }
    emit(result, _render, as_json=as_json)


class _Once(logging.Filter):
    """Lets each message through once: every loader has the same to say of the data."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the message is new."""
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


def _render(result: dict[str, Any]) -> str:
    head = [f"grey levels from {result['compared_with']}", "mean", "largest"]
    rows = [
        [each["backend"], f"{each['mean_difference']:.2f}", f"{each['largest_difference']}"]
        for each in result["backends"]
    ]
    drawn = f"{result['path']}: {len(result['samples'])} images of {result['split']}, augment {result['augment']}"
    failed = [f"{name}: failed ({reason})" for name, reason in result["failed"].items()]
    return "\n".join([drawn, table([head, *rows]), *failed])
