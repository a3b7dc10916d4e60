"""`in21k export`: a trained network for timm and the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import click

from .options import PATH, emit, file_options, json_option, overwrite_option, weights_option

DESCRIBED = {
    "last": "The weights are those of the last step.",
    "ema": "The weights are the moving average of those of all steps.",
    "best": "The weights are the best of the run on its validation images.",
    "best average": "The weights are the best, on the validation images, of the moving average of those of all steps.",
}


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN|CHECKPOINT|FILE", type=PATH)
@click.argument("out", type=PATH)
@weights_option
@file_options
@click.option("--onnx", is_flag=True, help="Also write model.onnx, and compare its logits with the network's.")
@click.option(
    "--license",
    "license_id",
    default="other",
    show_default=True,
    metavar="ID",
    help="Of the weights, as the hub names licences (apache-2.0, cc-by-nc-4.0, ...).",
)
@click.option("--push", metavar="USER/NAME", help="Then upload the folder to the Hugging Face hub.")
@click.option("--public", is_flag=True, help="With --push: make a new repository that all can see, not a private one.")
@overwrite_option
@json_option
def export(
    run_or_checkpoint: Path,
    out: Path,
    weights: Literal["last", "best", "ema"],
    architecture: str | None,
    classes: str | None,
    onnx: bool,
    license_id: str,
    push: str | None,
    public: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the network of a run, a checkpoint or a file of published weights into the folder OUT.

    Timm, the Hugging Face hub and in21k open that folder.

    Weights without optimizer (model.safetensors), config.json with the names of the classes, a model card (README.md),
    the settings without this machine's paths (config.yaml), metrics of these weights, the semantic tree, SHA256SUMS.
    `timm.create_model("local-dir:OUT", pretrained=True)` opens it, and so do `in21k validate`, `predict` and `train
    --teacher`.
    """
    from ..models.hub import check_hub, push_folder
    from ..models.onnx_file import check_onnx_installed
    from ..training.inference.open_model import holds_weights
    from ..training.jobs.export_job import export_published

    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license_id):
        raise ValueError(
            f"--license {license_id!r}: wanted a licence as the hub names it (apache-2.0, cc-by-nc-4.0, ...)"
        )
    if public and not push:
        raise ValueError("--public goes with --push USER/NAME")
    if push:
        check_hub(push)
    if onnx:
        check_onnx_installed()
    shared: dict[str, Any] = {"license_id": license_id, "onnx": onnx, "overwrite": overwrite}
    if holds_weights(run_or_checkpoint) and weights == "last":
        published = {"architecture": architecture, "classes": classes}
        content = export_published(run_or_checkpoint, out, **published, **shared)
    else:
        if architecture or classes:
            raise ValueError("--model and --classes go with a file of published weights; leave them out")
        content = _export_run(run_or_checkpoint, out, weights, shared)
    address = push_folder(out, push, private=not public) if push else None
    result = {"path": str(out), **content, "pushed_to": address}
    emit(result, render_export, as_json=as_json)


def _export_run(
    path: Path, out: Path, weights: Literal["last", "best", "ema"], shared: dict[str, Any]
) -> dict[str, Any]:
    """Write the export of a run or a checkpoint; return the content of its export.json."""
    from ..training import load_run
    from ..training.runs.export import metrics_of, write_export
    from ..training.runs.run_folder import RunFolder

    saved = load_run(path, weights)
    metrics = metrics_of(path, weights, saved.config)
    done, planned = metrics.get("num_epochs"), saved.settings.epochs
    ended = done == planned or (path.is_dir() and RunFolder(path).finished)
    unfinished = f"Training had not ended when these weights were saved: {done} of {planned} epochs were done."
    return write_export(
        saved,
        out,
        weights=weights,
        described=DESCRIBED["best average" if weights == "best" and saved.config.get("ema") else weights],
        metrics=metrics,
        notes=() if ended else (unfinished,),
        **shared,
    )


def render_export(result: dict[str, Any]) -> str:
    """Return as text what an export holds."""
    lines = [
        f"{result['path']}: {result['architecture']}, {result['num_classes']:,} classes, {result['weights']} weights"
    ]
    if check := result.get("onnx_check"):
        lines += [
            f"model.onnx: logits at most {check['largest_difference']:.2g} from the network's, "
            f"of which the largest is {check['largest_logit']:.2g}"
        ]
    lines += [f'open it with timm.create_model("local-dir:{result["path"]}", pretrained=True)']
    if result.get("pushed_to"):
        lines += [f"uploaded to {result['pushed_to']}"]
    return "\n".join(lines)
