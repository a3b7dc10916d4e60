"""`in21k predict`: what an image shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import PATH, device_option, emit, json_option, overwrite_option, weights_option

if TYPE_CHECKING:
    from PIL import Image


@click.command()
@click.argument("run_or_checkpoint", type=PATH)
@click.argument("images", metavar="IMAGE...", type=PATH, nargs=-1, required=True)
@weights_option
@click.option("--picture", type=PATH, help="Also draw the images with their labels into this PNG.")
@device_option
@overwrite_option
@json_option
def predict(
    run_or_checkpoint: Path,
    images: tuple[Path, ...],
    weights: Literal["last", "best", "ema"],
    picture: Path | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say what each IMAGE shows, from general to particular, with the network of RUN_OR_CHECKPOINT.

    The likely label at each level of the tree, as long as each lies below the one before, and the five likeliest of
    all classes. Images are prepared as the training images were: upright, RGB, stretched to the training size.
    """
    from .. import training
    from ..shards.files import whole_file

    if picture and picture.exists() and (not overwrite or picture.resolve() in [path.resolve() for path in images]):
        raise ValueError(f"{picture}: exists; give --picture another name, or --overwrite to replace an older picture")
    saved = training.load_run(run_or_checkpoint, weights)
    with training.join_ranks(device) as ranks:
        model = saved.model.to(ranks.device)
        predictions: list[dict[str, Any]] = []
        pictures: list[Image.Image] = []
        for path in images:
            pixels, shown = _prepare(path, saved.settings)
            (prediction,) = training.predict(model, pixels.to(ranks.device), saved.tree)
            predictions.append({"image": str(path), **prediction})
            if picture:
                pictures.append(training.draw_prediction(shown, prediction))
    if picture:
        with whole_file(picture) as aside:
            _stack(pictures).save(aside, "PNG")
    emit(predictions, "\n".join(map(_render, predictions)), as_json=as_json)


def _prepare(path: Path, settings: Any) -> tuple[Any, Image.Image]:
    """Return an image file as the network takes it, 1 x 3 x S x S, and upright for the picture."""
    from PIL import Image

    from ..datapipe.pixels import decode_squished, normalize_pixels
    from ..preprocess.image import ImageSettings, RejectedImageError, store_image

    size: int = settings.image_size or 224
    try:
        data = path.read_bytes()
        stored = store_image(data, ImageSettings(size=size))
        shown = store_image(data, ImageSettings(resize="none"))
    except RejectedImageError as error:
        raise ValueError(f"{path}: not readable as an image ({error}); wanted a JPEG, PNG, GIF, BMP or WebP") from error
    import torch

    pixels = normalize_pixels(decode_squished(stored.data, size).unsqueeze(0), settings.normalize, torch.float32)
    return pixels, Image.open(io.BytesIO(shown.data))


def _stack(pictures: list[Image.Image]) -> Image.Image:
    from PIL import Image

    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for each in pictures:
        whole.paste(each, (0, top))
        top += each.height
    return whole


def _render(prediction: dict[str, Any]) -> str:
    def shown(answer: dict[str, Any]) -> str:
        return f"{answer['name']} {100 * answer['probability']:.0f} %"

    chain = " > ".join(map(shown, prediction["chain"]))
    top = ", ".join(map(shown, prediction["top5"]))
    return f"{prediction['image']}: {chain}\n  likeliest of all classes: {top}"
