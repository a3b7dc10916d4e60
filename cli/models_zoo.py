"""The table of `in21k models --zoo`: the networks that were published with semantic softmax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .options import table

SUFFIXES = (".pth", ".pt", ".safetensors", ".tar")
NOTE = (
    "All figures are as published, at 224 pixels: ImageNet-1K after fine-tuning; batch and speeds on a V100, "
    "speeds at 90 % of the largest batch (https://github.com/Alibaba-MIIL/ImageNet21K/blob/main/MODEL_ZOO.md)."
)


def zoo_rows(place: Path) -> list[dict[str, Any]]:
    """Return the published table, as JSON values, with the files at a place (a folder or a file) that belong to it.

    Files go by their keys and shapes, not by their names.
    """
    from ..models.published import ZOO

    at_hand = list(_recognised(place))
    return [
        {
            **{"name": network.title, "model": network.word, "architecture": network.architecture},
            **{"file": network.file, "semantic_top1": network.semantic_top1, "top1": network.imagenet1k_top1},
            **{"largest_training_batch": network.largest_batch, "training_images_per_s": network.training_rate},
            "inference_images_per_s": network.inference_rate,
            "at_hand": [str(path) for path, architecture in at_hand if architecture == network.architecture],
        }
        for network in ZOO
    ]


def _recognised(place: Path) -> Iterator[tuple[Path, str]]:
    from ..models.published import read_published
    from ..training.inference.open_model import holds_weights

    if not place.exists():
        raise ValueError(f"{place}: does not exist; wanted a folder of weights, or a file of them")
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    for path in files:
        if path.suffix in SUFFIXES and holds_weights(path):
            try:
                yield path, read_published(path).name.partition(".")[0]
            except ValueError:  # some other file: the table lists those of the zoo
                continue


def render_zoo(rows: list[dict[str, Any]]) -> str:
    """Return the table as text, with its source."""
    head = ["network", "--model", "semantic top-1 %", "IN-1K top-1 %", "batch", "training img/s", "inference img/s"]
    lines = [[*head, "file", "at hand"]]
    for row in rows:
        cells = [row["name"], row["model"], f"{row['semantic_top1']:.1f}", f"{row['top1']:.1f}"]
        cells += [f"{row[key]:,}" for key in row if key.startswith(("largest", "training", "inference"))]
        lines.append([*cells, row["file"], ", ".join(row["at_hand"])])
    return f"{table(lines)}\n\n{NOTE}"
