"""Any trained network by one word: a run, a checkpoint of one, or a model of timm with its published weights."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from ...models.export import MEAN_STD
from ...models.label_space import LabelSpace, label_space_of
from ...shards.tree import SemanticTree
from .saved_run import SavedRun, Weights, load_run

_SOURCES = ("local-dir:", "hf-hub:")  # of timm's model names


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A trained network in evaluation mode on the CPU, and how its images are prepared.

    name:       the architecture, with timm's tag where it has one; says no path.
    mean, std:  per RGB channel of pixels in 0..1.
    image_size: side in pixels.
    crop_pct:   the shorter side is resized to image_size / crop_pct and the middle taken; None: the whole image is
                stretched to a square.
    interpolation: how its images are resized: `bilinear`, `bicubic`, ...; always antialiased.
    classes:    what its outputs stand for; None where nobody knows.
    tree:       of a run, the tree of its classes.
    run:        of a run, all that is known of it.
    """

    model: nn.Module
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    crop_pct: float | None
    interpolation: str = "bilinear"
    classes: LabelSpace | None
    tree: SemanticTree | None = None
    run: SavedRun | None = None

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) as the network takes them, float32."""
        mean, std = torch.tensor([self.mean, self.std], device=images.device).view(2, 1, 3, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def fingerprint(self) -> str:
        """Return 16 hex digits that are equal for equal weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def open_model(name: str | Path, weights: Weights = "last") -> OpenModel:
    """Open the folder of a run, a checkpoint file of a run, a folder that timm opens, or a timm model by name.

    name:    the latter with weights that timm fetches (`tresnet_m.miil_in21k`); also `local-dir:` and `hf-hub:`.
    weights: of a run; see `load_run`.

    Raises ValueError where it is none of these or cannot be had.
    """
    text, path = str(name), Path(name)
    if path.is_file() or (path / "config.yaml").is_file():
        return _from_run(load_run(path, weights))
    if (path / "config.json").is_file():
        return _from_timm(text, f"local-dir:{path}")
    if timm.is_model(text) or text.startswith(_SOURCES):
        return _from_timm(text, text)
    if path.is_dir():
        raise ValueError(
            f"{path}: no run of in21k train (it has no config.yaml), nor a model's folder (no config.json)"
        )
    near = difflib.get_close_matches(text, timm.list_models(), n=3, cutoff=0.6)
    raise ValueError(
        f"{text}: does not exist, and timm knows no such model; wanted a run's folder, a checkpoint "
        f"of a run, or a model of timm{'; nearest: ' + ', '.join(near) if near else ''}"
    )


def _from_run(run: SavedRun) -> OpenModel:
    settings = run.settings
    mean, std = MEAN_STD[settings.normalize]
    return OpenModel(
        model=run.model,
        name=settings.model,
        mean=mean,
        std=std,
        image_size=settings.image_size or 224,
        crop_pct=settings.crop_pct,
        classes=LabelSpace("of the run", run.tree.wnids),
        tree=run.tree,
        run=run,
    )


def _from_timm(name: str, timm_name: str) -> OpenModel:
    try:
        model = timm.create_model(timm_name, pretrained=True).eval()
    except Exception as error:  # of timm, the hub, the network below it and the files' readers, each has its own kinds
        raise ValueError(f"{name}: timm cannot open it ({_first_line(error)})") from error
    config = cast(dict[str, Any], model.pretrained_cfg)
    try:
        classes = label_space_of(model)
    except ValueError:
        classes = None
    return OpenModel(
        model=model,
        name=".".join(filter(None, (config.get("architecture"), config.get("tag")))) or name,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=config["input_size"][-1],
        crop_pct=None if config.get("crop_mode") == "squash" else config.get("crop_pct"),
        interpolation=config.get("interpolation") or "bilinear",
        classes=classes,
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
