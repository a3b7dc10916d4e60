"""Any trained network by one word: a run, a checkpoint of one, a file of published weights, or a model of timm."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ...models.export import BY_SIGMOID, SEVERAL_LABELS, weights_fingerprint
from ...models.fit import convert
from ...models.label_space import LabelSpace, class_map, known_label_spaces, label_space_of, named_label_space
from ...models.published import PublishedFile, read_published
from ...models.trial import try_images
from ...models.weights_file import check_finite, read_weights
from ...shards.normalize import mean_std, short_normalize
from ...shards.tree import SemanticTree
from ..losses.create import trains_inner
from ..runs.checkpoint import is_checkpoint
from ..runs.saved_run import SavedRun, Weights, load_run
from ..settings import BINARY_LOSSES

log = logging.getLogger(__name__)

# A run's files of weights, and what --weights calls them.
_OF_RUN: dict[str, Weights] = {"model.safetensors": "last", "model_ema.safetensors": "ema"}
_FOLDER = "local-dir:"
_SOURCES = (_FOLDER, "hf-hub:")  # of timm's model names
_UNSAFE = (".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".pth.tar")  # which may hold pickles


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A trained network in evaluation mode on the CPU, and how its images are prepared.

    name:       the architecture, with timm's tag where it has one; never a path.
    source:     the word that it was opened by: a path or timm's name; empty where it was not opened by one.
    mean, std:  per RGB channel of pixels in 0..1.
    image_size: side in pixels.
    crop_pct:   the shorter side is resized to image_size / crop_pct and the middle taken; None: the whole image is
                stretched to a square.
    interpolation: how its images are resized: `bilinear`, `bicubic`, ...; always antialiased.
    classes:    what its outputs stand for; None where that is unknown.
    tree:       of a run, and of a file whose classes a tree named, the tree of the classes.
    run:        of a run, all that is known of it.
    """

    model: nn.Module
    name: str
    source: str = ""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    crop_pct: float | None
    interpolation: str = "bilinear"
    classes: LabelSpace | None
    tree: SemanticTree | None = None
    run: SavedRun | None = None

    @property
    def multi_label(self) -> bool:
        """Whether it was trained on images of several labels each: its outputs are one yes or no a label."""
        if self.run:
            return "label_sets" in self.run.config["data"]
        return SEVERAL_LABELS in self._notes

    @property
    def by_sigmoid(self) -> bool:
        """Whether the probability of a class is the sigmoid of its logit, as the network was trained; else softmax.

        So it is where the loss was a binary cross-entropy for each class, of one label an image too: there the softmax
        of the same logits would claim more than the network does (of the probabilities 0.9 and 0.1 it makes 0.99 and
        0.01).
        """
        if self.run:
            return self.run.settings.loss in BINARY_LOSSES
        return BY_SIGMOID in self._notes

    @property
    def _notes(self) -> Sequence[str]:
        """What an export of ours says to timm, which hands it on."""
        config: dict[str, Any] = getattr(self.model, "pretrained_cfg", None) or {}
        return config.get("notes") or ()

    @property
    def trains_inner(self) -> bool:
        """Whether the outputs for inner classes of a run's tree were trained."""
        return self.run is None or trains_inner(self.run.settings)

    def outputs_of(self, tree: SemanticTree) -> Tensor:
        """Return which outputs are the classes of a tree, int64, for `logits[:, outputs]`.

        Those of its image classes alone where the network has none for its inner classes, or none that were trained.
        Raises ValueError where it lacks an image class.
        """
        assert self.classes is not None
        has_inner = self.trains_inner and set(tree.wnids) <= set(self.classes.wnids)
        return class_map(self.classes, tree.wnids if has_inner else tree.wnids[: tree.num_image_classes])

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) as the network takes them, float32."""
        mean, std = _constants(self.mean, self.std, images.device)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def check(self) -> None:
        """Have the network answer two images of its size; raises ValueError where it takes none, or gives no logits."""
        num_outputs = cast(int, self.model.num_classes)
        try_images(self.model, self.image_size, name=self.name, num_outputs=num_outputs)

    def fingerprint(self) -> str:
        """Return 16 hex digits that are equal for equal weights."""
        return weights_fingerprint(self.model)


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return both as (1, 3, 1, 1) on the device: made once, as making them there waits for it."""
    with torch.inference_mode(False):  # usable also where gradients are recorded
        both = torch.tensor([mean, std], device=device).view(2, 1, 3, 1, 1)
        return both[0], both[1]


def open_model(
    name: str | Path, weights: Weights = "last", *, architecture: str | None = None, classes: str | Path | None = None
) -> OpenModel:
    """Open a trained network by one word.

    name:         the folder of a run or of an export of one, a checkpoint file of a run, a folder that timm opens, a
                  file of published weights (`.pth`, `.safetensors`), or a timm model, whose weights timm fetches
                  (`tresnet_m.miil_in21k`); also `local-dir:` and `hf-hub:`.
    weights:      of a run; see `load_run`.
    architecture: of a file of published weights; None: the one of the zoo's that alone has its keys.
    classes:      of a file of published weights, see `named_label_space`; None: by the number of its outputs.

    Raises ValueError where it is none of these or cannot be had.
    """
    text, path = str(name), Path(name)
    if _is_of_run(path):
        path, weights = path.parent, _OF_RUN[path.name]
    if holds_weights(path):
        _check_weights(name, weights)
        return _from_file(path, architecture, classes)
    if architecture is not None or classes is not None:
        raise ValueError(
            f"{name}: is not a file of published weights, and its network and classes are known; leave out "
            f"{'--model' if architecture is not None else '--classes'}"
        )
    if _is_run(path):
        return _from_run(text, load_run(path, weights))
    if timm_name := _timm_name(text):
        _check_weights(name, weights)
        return _from_timm(text, timm_name)
    if path.is_dir():
        raise ValueError(
            f"{path}: no run of in21k train (it has no config.yaml), nor a model's folder (no config.json)"
        )
    near = difflib.get_close_matches(text, timm.list_models(), n=3, cutoff=0.6)
    raise ValueError(
        f"{text}: does not exist, and timm knows no such model; wanted a run's folder, a checkpoint "
        f"of a run, a file of weights, or a model of timm{'; nearest: ' + ', '.join(near) if near else ''}"
    )


def holds_weights(path: Path) -> bool:
    """Return whether a path is a file of weights alone: neither a checkpoint of a run nor a file of its folder."""
    return path.is_file() and not _is_of_run(path) and not is_checkpoint(path)


def _is_of_run(path: Path) -> bool:
    return path.name in _OF_RUN and path.is_file() and (path.parent / "config.yaml").is_file()


def num_published(name: str) -> int | None:
    """Return how many outputs a model has whose weights `open_model` would fetch, without fetching them.

    None: the name is not of such a model, or timm knows the number only once the model is open.
    """
    timm_name = None if _is_run(Path(name)) else _timm_name(name)
    if timm_name is None or not timm.is_model_pretrained(timm_name):
        return None
    published: Any = get_pretrained_cfg(timm_name)
    return published.num_classes


def _check_weights(name: str | Path, weights: Weights) -> None:
    if weights not in ("last", "ema-or-last"):
        raise ValueError(f"--weights {weights} goes with runs; {name} is not one")


def _is_run(path: Path) -> bool:
    return path.is_file() or (path / "config.yaml").is_file()


def _timm_name(name: str) -> str | None:
    """Return as what timm opens a model; None where it is none."""
    if (Path(name) / "config.json").is_file():
        return f"{_FOLDER}{name}"
    return name if timm.is_model(name) or name.startswith(_SOURCES) else None


def _from_run(source: str, run: SavedRun) -> OpenModel:
    settings = run.settings
    mean, std = mean_std(settings.normalize)
    return OpenModel(
        model=run.model,
        name=settings.model,
        source=source,
        mean=mean,
        std=std,
        image_size=settings.image_size or 224,
        crop_pct=settings.crop_pct,
        classes=LabelSpace("of the run", run.tree.wnids),
        tree=run.tree,
        run=run,
    )


def _from_file(path: Path, architecture: str | None, classes: str | Path | None) -> OpenModel:
    file = read_published(path, architecture)
    space, tree = None, None
    if classes is not None:
        space, tree = named_label_space(classes, file.num_classes)
    elif file.num_classes in known_label_spaces():
        space = label_space_of(file.num_classes)
    model, report = file.build()
    if classes is not None and space:
        described = cast(Any, model)
        described.pretrained_cfg = {**described.pretrained_cfg, "label_names": space.wnids}
    opened = OpenModel(
        model=model,
        name=file.name,
        source=str(path),
        mean=file.mean,
        std=file.std,
        image_size=file.image_size,
        crop_pct=file.crop_pct,
        interpolation=file.interpolation,
        classes=space,
        tree=tree,
    )
    log.info("%s", _describe(opened, file))
    if report.unused:
        log.warning("%s", report)
    return opened


def _describe(opened: OpenModel, file: PublishedFile) -> str:
    """Return a line on what a file of published weights was opened as."""
    part = f" [{file.part}]" if file.part else ""
    network = f"{file.zoo.title} of the zoo ({file.name})" if file.zoo else file.name
    classes = opened.classes.name if opened.classes else "unknown ones, which --classes names"
    size = f"{opened.image_size} x {opened.image_size} pixels"
    crop = "stretched" if opened.crop_pct is None else f"the middle {100 * opened.crop_pct:g} %"
    normalize = short_normalize((opened.mean, opened.std))
    return (
        f"{opened.source}{part}: {network}, {file.num_classes:,} classes ({classes}); images of {size}, {crop}, "
        f"normalize {normalize}"
    )


def _from_timm(name: str, timm_name: str) -> OpenModel:
    folder = Path(timm_name.removeprefix(_FOLDER)) if timm_name.startswith(_FOLDER) else None
    weights = folder and _weights_file(folder)
    try:
        model = timm.create_model(timm_name, pretrained=weights is None).eval()
    except Exception as error:  # of timm, the hub, the network below it and the files' readers, each has its own kinds
        raise ValueError(f"{name}: timm cannot open it ({first_line(error)})") from error
    if weights:
        _load_all(model, weights)
    config = cast(dict[str, Any], model.pretrained_cfg)
    check_finite(name, model.state_dict())
    try:
        classes = label_space_of(model)
    except ValueError:
        classes = None
    return OpenModel(
        model=model,
        name=".".join(filter(None, (config.get("architecture"), config.get("tag")))) or name,
        source=name,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=config["input_size"][-1],
        crop_pct=None if config.get("crop_mode") == "squash" else config.get("crop_pct"),
        interpolation=config.get("interpolation") or "bilinear",
        classes=classes,
    )


def _weights_file(folder: Path) -> Path:
    """Return a model folder's file of weights; raises ValueError where it has none that holds nothing but weights.

    timm would take others too, and might run what is in them.
    """
    path = folder / "model.safetensors"
    if path.is_file() or not folder.is_dir():
        return path
    others = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(_UNSAFE))
    instead = f"but {others[0]}, which may run code when it is opened" if others else "and nothing to take instead"
    raise ValueError(
        f"{folder}: has no model.safetensors, {instead}; save the weights as that (safetensors.torch.save_file)"
    )


def _load_all(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a file; raises ValueError where they are not its weights, all of them."""
    try:
        model.load_state_dict(convert(model, read_weights(path), path))
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights are not those of config.json ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; of one that says nothing, its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]
