"""Networks by name: every architecture that timm knows, and ours, which it knows once this module is imported."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]
from timm.models import get_pretrained_cfg
from torch import nn

from . import ofa as ofa  # registers `ofa_flops_595m_s`
from .hollow import hollow
from .label_space import known_label_spaces
from .weights import Head, load_weights

log = logging.getLogger(__name__)

# What `create_model` decides itself; timm would take these too, and contradict it.
_TAKEN = {
    "checkpoint_path": "give the weights as `checkpoint`",
    "num_classes": "the data set gives the number of classes",
    "pretrained": "give the weights as `checkpoint`",
}
_OF_DATA = ("num_classes", "in_chans")


def list_models(pattern: str = "") -> list[str]:
    """Return the names of timm's architectures and ours in alphabetical order.

    pattern: a shell pattern (`resnet*`), or a plain part of the name (`resnet`); empty: all of them.
    """
    return timm.list_models(pattern if not pattern or set("*?[") & set(pattern) else f"*{pattern}*")


def input_size_of(name: str) -> tuple[int, int, int]:
    """Return channels, height and width of the images that an architecture is made for, by timm's default settings."""
    config = get_pretrained_cfg(name)
    assert config is not None, name
    return config.input_size


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that timm fetches by name, whose head knows ImageNet-21K classes."""

    name: str
    """`architecture.tag`."""
    num_classes: int
    label_space: str
    """See `label_space_of`: `fall11p`, `in12k`, ..."""
    input_size: tuple[int, int, int]
    """Channels, height and width of the images that it was trained on."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    """Where timm fetches them: a repository of the Hugging Face hub, or a URL."""


def pretrained_21k() -> list[PublishedWeights]:
    """Return the weights in timm's registry that have as many classes as a known label space of ImageNet-21K."""
    spaces = {num_classes: name for num_classes, name in known_label_spaces().items() if name != "in1k"}
    known: list[PublishedWeights] = []
    for name in timm.list_pretrained():
        config = get_pretrained_cfg(name)
        if config is None or config.num_classes not in spaces:
            continue
        published = PublishedWeights(
            name=name,
            num_classes=config.num_classes,
            label_space=spaces[config.num_classes],
            input_size=config.input_size,
            mean=config.mean,
            std=config.std,
            source=str(config.hf_hub_id or config.url),
        )
        known.append(published)
    return known


def create_model(
    name: str,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    *,
    head: Head = "drop",
    wnids: Sequence[str] | None = None,
    partial: bool = False,
    **model_args: Any,
) -> nn.Module:
    """Build a network with random weights, or with weights from a file.

    name:        a timm architecture (`resnet50`), or `ofa_flops_595m_s`.
    num_classes: outputs of the head; None keeps the architecture's own number (mostly 1,000), 0 leaves the head out.
    checkpoint:  a file for `load_weights`; the log says what of it fitted.
    head, wnids: what becomes of the file's head where it has another number of classes; see `load_weights`. With `keep`
                 the file gives the number of classes.
    partial:     take weights that hardly fit, too; see `load_weights`.
    model_args:  what else the architecture takes (`drop_path_rate=0.1`, `img_size=64`, ...).

    Raises ValueError for a name that timm does not know, an argument that the architecture does not take, or weights
    that hardly fit.

    >>> create_model("resnet18", num_classes=10).get_classifier()
    Linear(in_features=512, out_features=10, bias=True)
    """
    check_name(name)
    for key in sorted(_TAKEN.keys() & model_args.keys()):
        raise ValueError(f"model {name}: got the argument {key}={model_args[key]!r}; {_TAKEN[key]}")
    if head == "keep" and num_classes is not None:
        raise ValueError(f"model {name}: got num_classes={num_classes} and head='keep', by which the file gives them")
    if head != "drop" and checkpoint is None:
        raise ValueError(f"model {name}: head={head!r} needs a checkpoint")
    if num_classes is not None:
        model_args = {**model_args, "num_classes": num_classes}
    try:
        model = timm.create_model(name, **model_args)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in model_args.items())
        raise ValueError(
            f"model {name}: cannot be built with {arguments or 'no arguments'} ({error})"
            f"{_nearest_arguments(name, error)}"
        ) from error
    if checkpoint is not None:
        report = load_weights(model, checkpoint, head=head, wnids=wnids, partial=partial)
        log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return model


def _nearest_arguments(name: str, error: Exception) -> str:
    """Return the end of a message: the arguments of an architecture that are like the one that it does not know."""
    unknown = re.search(r"unexpected keyword argument\D*?'(\w+)'", str(error))
    if unknown is None:
        return ""
    with hollow():
        classes: list[Any] = type(timm.create_model(name)).mro()
    # Some networks are put together from a description, whose class the error names.
    described = re.match(r"(\w+)\.__init__\(\)", str(error))
    if described:
        classes.append(getattr(sys.modules[timm.models.model_entrypoint(name).__module__], described[1], None))
    known = {name for kind in classes if kind for name in inspect.signature(kind.__init__).parameters}
    nearest = difflib.get_close_matches(unknown[1], sorted(known - {"self", "args", "kwargs", *_OF_DATA}), cutoff=0.4)
    return f"; nearest: {', '.join(nearest)}" if nearest else ""


def create_model_for(name: str, image_size: int | None, num_classes: int | None = None) -> tuple[nn.Module, int]:
    """Build a network with random weights for square images of a size; return it with the side in pixels.

    image_size: None is the architecture's own. An architecture whose layers depend on it is built for it; whether
                others take it their first image tells.

    Raises ValueError for a name that timm does not know.
    """
    check_name(name)
    if image_size is not None:
        try:
            return create_model(name, num_classes, img_size=image_size), image_size
        except ValueError:  # it takes no `img_size`: most convolutional networks take any size
            pass
    model = create_model(name, num_classes)
    own: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return model, image_size or own["input_size"][-1]


def check_name(name: str) -> None:
    """Raise ValueError for a name that timm does not know."""
    if timm.is_model(name):
        return
    nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    raise ValueError(f"unknown model {name!r}{hint}; wanted an architecture of timm (`timm.list_models()`)")


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Let a model compute its activations a second time instead of keeping them; raises ValueError where it cannot."""
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError("it has no switch for it")
        switch(True)
    except AssertionError as error:
        raise ValueError(f"{name}: knows no grad_checkpointing ({error}); leave it off") from error


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with batch norms over the batches of all ranks; parameters and buffers are the same tensors.

    torch's own converter would drop what timm's norm layers compute beside the norm: their activation and dropout.
    """
    return convert_sync_batchnorm(model)
