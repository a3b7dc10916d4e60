"""A network as an ONNX file, and whether that file computes the same."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

# Of the largest logit. Measured: 2e-6 at most over convolutional, attention and mixing networks.
TOLERANCE = 1e-4
BATCHES = (1, 3)  # to compare with; neither is the one that the network was traced with
# Protocol buffers end at 2 GiB: a larger network's weights go into a file beside, model.onnx.data.
LARGEST_SINGLE_FILE = 1_900_000_000


class OnnxCheck(NamedTuple):
    """How far apart the logits of network and file are at most, and how large the largest of the network's is."""

    largest_difference: float
    largest_logit: float


def check_onnx_installed() -> None:
    """Raise ValueError where a package is missing that writes or runs ONNX files."""
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise ValueError(f"--onnx needs {', '.join(missing)}: pip install 'in21k[onnx]'")


def export_onnx(
    model: nn.Module, path: Path, image_size: int, *, largest_single_file: int = LARGEST_SINGLE_FILE
) -> OnnxCheck:
    """Write `path` and compare it with the network, in onnxruntime on the CPU.

    The file takes `images`, float32 (batch, 3, image_size, image_size) of any batch, and gives `logits`, float32
    (batch, num_classes).

    model:               in float32 on the CPU; put into evaluation mode.
    largest_single_file: networks of more bytes have their weights in a file beside, `<path>.data`.

    Raises ValueError where torch cannot write the network, or onnxruntime gives other logits (more than `TOLERANCE` of
    the largest logit apart).
    """
    model.eval()
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # each pass of the optimizer says what it did
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    try:
        program: Any = torch.onnx.export(
            model,
            (torch.zeros(2, 3, image_size, image_size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
        _forget_the_way(program.model)
        program.save(path, external_data=num_bytes > largest_single_file)
    except Exception as error:  # of torch.export, the converter and its optimizer, each has its own kinds
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        reason = (str(cause).splitlines() or [""])[0]
        raise ValueError(
            f"torch {torch.__version__} cannot write this network as ONNX ({type(cause).__name__}: {reason}); "
            "leave --onnx out, or try another version of torch"
        ) from error
    return _compare(model, path, image_size)


def _forget_the_way(model: Any) -> None:
    """Remove what torch notes of how it came to each node: lines of source files, with this machine's paths."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()


def _compare(model: nn.Module, path: Path, image_size: int) -> OnnxCheck:
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    apart = largest = torch.zeros(())
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for num_images in BATCHES:
            images = torch.randn(num_images, 3, image_size, image_size, generator=generator)
            with torch.inference_mode():
                wanted = model(images)
            (logits,) = session.run(["logits"], {"images": images.numpy()})
            apart = torch.maximum(apart, (torch.from_numpy(logits) - wanted).abs().max())
            largest = torch.maximum(largest, wanted.abs().max())
    except Exception as error:  # of onnxruntime's own kinds
        raise ValueError(f"onnxruntime cannot run what torch wrote ({' '.join(str(error).split())})") from error
    check = OnnxCheck(apart.item(), largest.item())
    # `not <=` refuses NaN too.
    if not check.largest_difference <= TOLERANCE * check.largest_logit:
        raise ValueError(
            f"the ONNX file's logits differ from the network's by up to {check.largest_difference:.2g} (the largest is "
            f"{check.largest_logit:.2g}); wanted at most {TOLERANCE:g} of that; export without --onnx"
        )
    return check
