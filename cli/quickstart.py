"""The main job on drawn images, each step the command that a user would type: `python -m in21k.cli.quickstart`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from .options import PATH
from .progress import clock
from .terminal import colour


@click.command()
@click.argument("folder", type=PATH, default=Path("quickstart"))
@click.option("--classes", default=24, show_default=True)
@click.option("--images-per-class", default=60, show_default=True)
@click.option("--set", "sets", multiple=True, help="A setting of the training.")
def main(folder: Path, classes: int, images_per_class: int, sets: tuple[str, ...]) -> None:
    """Carry drawn images from a raw archive to a prediction, in FOLDER."""
    begun = time.monotonic()
    raw, prepared, shards, run = (folder / name for name in ("raw.tar", "prepared", "shards", "run"))
    threshold, val = str(images_per_class // 2), str(max(1, images_per_class // 6))
    folder.mkdir(parents=True, exist_ok=True)
    _in21k("sample-data", raw, "--classes", str(classes), "--images-per-class", str(images_per_class))
    _in21k(
        *("preprocess", "raw-tar", raw, prepared),
        *("--rare-threshold", threshold, "--val-per-class", val, "--size", "64"),
    )
    _in21k("shard", prepared, shards, "--shard-samples", "400")
    _in21k("verify", shards, "--deep")
    settings = [word for setting in sets for word in ("--set", setting)]
    _in21k("train", "--data", shards, "--out", run, "--recipe", "tiny", "--backend", _backend(), *settings)
    result = _json("validate", run, "--data", shards)
    archive, image = _deepest_image(prepared)
    _run("tar", "-xf", archive, "-C", folder, image.name)
    _in21k("predict", run, image, "--picture", folder / "prediction.png", "--overwrite")
    click.echo(
        f"\nDone in {clock(time.monotonic() - begun)}. In {folder}/: the raw archive, prepared/, shards/, "
        f"run/ (the network, for timm too), prediction.png\n"
        f"semantic top-1 {result['semantic_top1']:.1f} % "
        f"(always the commonest answer: {result['semantic_top1_commonest']:.1f} %), top-1 {result['top1']:.1f} %\n"
        f"Next: in21k tree show {run};  in21k preprocess raw-tar fall11_whole.tar PREPARED;  in21k --help"
    )


def _backend() -> str:
    import torch

    return "dali_gpu" if torch.cuda.is_available() else "dali_cpu"


def _run(*words: str | Path, capture: bool = False) -> str:
    """Echo a command, then run it; its failure ends the quickstart with its exit code."""
    command = [str(word) for word in words]
    click.echo(click.style(f"\n$ {shlex.join(command)}", bold=True), color=colour())
    # The command of this very installation, wherever the shell would look.
    if command[0] == "in21k":
        command[:1] = [sys.executable, "-c", "from in21k.cli.main import main; main()"]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def _in21k(*words: str | Path) -> None:
    _run("in21k", *words)


def _json(*words: str | Path) -> dict[str, Any]:
    out = _run("in21k", *words, "--json", capture=True)
    click.echo(out, nl=False)
    return json.loads(out)


def _deepest_image(prepared: Path) -> tuple[Path, Path]:
    """Return the archive that holds a validation image of a class deep in the tree, and where to put the image."""
    from ..shards import PreparedSet
    from ..shards.dataset import read_manifest

    dataset = PreparedSet(prepared)
    levels = dataset.tree.levels
    rows = read_manifest(dataset, ["split", "class_index", "archive", "key"]).to_pylist()
    row = max((row for row in rows if row["split"] == "val"), key=lambda row: levels[row["class_index"]])
    return prepared / row["archive"], prepared.parent / f"{row['key']}.jpg"


if __name__ == "__main__":
    main()
