"""A trained network as timm and the Hugging Face hub open it: `model.safetensors` + `config.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..shards.files.atomic import naming
from ..shards.normalize import mean_std

# What timm needs of an architecture's own entry to give it another head or other input channels later.
_ARCHITECTURE_KEYS = ("first_conv", "classifier", "fixed_input_size")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the network's parameters and buffers to a `.safetensors` file."""
    # safetensors refuses tensors that share their storage, so each is copied.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with naming(path):
        path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def weights_fingerprint(model: nn.Module, also: str = "") -> str:
    """Return a fingerprint of the names and values of the network's parameters and buffers, 16 hex digits.

    also: what else it is of.
    """
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


CHECKSUMS = "SHA256SUMS"
# What `notes` in config.json say of how logits are read; timm hands them on in `pretrained_cfg`.
BY_SIGMOID = "the probability of a class is the sigmoid of its logit"
SEVERAL_LABELS = "an image has any number of labels"
INNER_CLASSES = "the first {} outputs are classes with images, the others their ancestors"


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into its `SHA256SUMS`, which `sha256sum -c` reads."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    with naming(folder / CHECKSUMS):
        (folder / CHECKSUMS).write_text("".join(_checksum_line(folder / name) for name in names), encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the lines of a folder's `SHA256SUMS` by file name; empty if the file is missing."""
    sums = folder / CHECKSUMS
    lines = sums.read_text(encoding="utf-8").splitlines(keepends=True) if sums.is_file() else []
    return {line.rstrip("\n").partition("  ")[2]: line for line in lines}


def changed_files(folder: Path) -> list[str]:
    """Return the names of the files that are missing or differ from the folder's `SHA256SUMS`."""
    lines = read_checksums(folder)
    changed = [
        name for name, line in lines.items() if not (folder / name).is_file() or _checksum_line(folder / name) != line
    ]
    return changed if lines else [CHECKSUMS]


def _checksum_line(path: Path) -> str:
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"


def timm_config(
    model: nn.Module,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    image_size: int,
    crop_pct: float | None,
    normalize: str | Sequence[Any],
    wnids: Sequence[str],
    names: Sequence[str],
    by_sigmoid: bool = False,
    several_labels: bool = False,
    num_image_classes: int | None = None,
) -> dict[str, Any]:
    """Return the content of `config.json`, as `timm.create_model("local-dir:RUN", pretrained=True)` wants it.

    architecture: timm's name; a pretrained tag behind a dot is left out.
    image_size:   side of the square images in pixels.
    crop_pct:     the shorter side is resized to image_size / crop_pct and the middle taken; None: the whole image is
                  stretched to a square.
    normalize:    of the images that it was trained on; see `shards.normalize`.
    wnids, names: the classes in the order of the head's outputs.
    by_sigmoid, several_labels: see `BY_SIGMOID` and `SEVERAL_LABELS`.
    num_image_classes: how many classes, the first ones, have images of their own; None: all. The others are ancestors
                  of these, which a plain argmax must leave out: `num_image_classes` and a note say so.
    """
    notes = [*([BY_SIGMOID] if by_sigmoid else []), *([SEVERAL_LABELS] if several_labels else [])]
    has_inner = num_image_classes is not None and num_image_classes < len(wnids)
    if has_inner:
        notes.append(INNER_CLASSES.format(num_image_classes))
    mean, std = mean_std(normalize)
    own: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return {
        "architecture": architecture.partition(".")[0],
        "num_classes": len(wnids),
        **({"num_image_classes": num_image_classes} if has_inner else {}),
        "num_features": getattr(model, "num_features", None),
        "model_args": dict(model_args),
        "pretrained_cfg": {
            **{key: own[key] for key in _ARCHITECTURE_KEYS if own.get(key) is not None},
            "num_classes": len(wnids),
            "input_size": [3, image_size, image_size],
            "interpolation": "bilinear",
            "crop_pct": 1.0 if crop_pct is None else crop_pct,
            "crop_mode": "squash" if crop_pct is None else "center",
            "mean": list(mean),
            "std": list(std),
            "label_names": list(wnids),
            "label_descriptions": dict(zip(wnids, names, strict=True)),
            **({"notes": notes} if notes else {}),
        },
    }
