"""A small raw archive, and what the commands make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from in21k.cli.main import cli

NUM_CLASSES, IMAGES_PER_CLASS = 8, 12


def run(*words: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def run_json(*words: object) -> Any:
    """Run a command that has to succeed with `--json`, and return what it printed: one JSON document."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw archive of drawn images, with oddities."""
    path = tmp_path_factory.mktemp("cli") / "raw.tar"
    run_json("sample-data", path, "--classes", NUM_CLASSES, "--images-per-class", IMAGES_PER_CLASS, "--oddities")
    return path


@pytest.fixture(scope="session")
def prepared(raw: Path) -> Path:
    """The archive, prepared: 32 pixels, two validation images a class."""
    path = raw.parent / "prepared"
    run_json(
        *("preprocess", "raw-tar", raw, path, "--rare-threshold", IMAGES_PER_CLASS - 1, "--val-per-class", 2),
        *("--size", 32, "--max-reject-rate", 0.1, "--workers", 1),
    )
    return path


@pytest.fixture(scope="session")
def shards(prepared: Path) -> Path:
    """Its shards."""
    path = prepared.parent / "shards"
    run_json("shard", prepared, path, "--shard-samples", 30, "--workers", 1)
    return path


@pytest.fixture(scope="session")
def train_words(shards: Path) -> Callable[[Path], list[object]]:
    """The words of a training that takes seconds, into a given folder."""
    settings = {"model": "resnet10t", "batch_size": 16, "epochs": 2, "backend": "torch", "workers": 1}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return lambda out: ["train", "--data", shards, "--out", out, *sets]


@pytest.fixture(scope="session")
def trained(shards: Path, train_words: Callable[[Path], list[object]]) -> Path:
    """A finished run on them."""
    path = shards.parent / "run"
    run_json(*train_words(path))
    return path


def write_label_list(path: Path, labels: dict[str, tuple[int, int, int]], count: int, seed: int) -> Path:
    """Write a list of noisy images of one colour each, {labels as the list has them: colour}, `count` of each."""
    draws, lines = np.random.default_rng(seed), list[str]()
    (path.parent / path.stem).mkdir(parents=True)
    for place, (words, colour) in enumerate(labels.items()):
        for number in range(count):
            image = path.parent / path.stem / f"{place}-{number}.png"
            pixels = np.array(colour) + draws.normal(0, 40, (40, 36, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image)
            lines.append(f"{image.relative_to(path.parent)} {words}")
    path.write_text("\n".join(lines))
    return path


LABELLED = {"red,warm": (200, 60, 40), "green": (60, 160, 60), "blue,cold": (40, 60, 200), "-": (110, 110, 110)}
MISLEADING = {"green,cold": (190, 70, 40)}  # what looks red in validation, so that there are mistakes to measure


@pytest.fixture(scope="session")
def labels_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images of five labels or none; beside it the images and `run-data`, where they are packed."""
    home = tmp_path_factory.mktemp("labels")
    train = write_label_list(home / "train.txt", LABELLED, 24, seed=0)
    val = write_label_list(home / "val.txt", LABELLED | MISLEADING, 3, seed=1)
    sets = {"batch_size": 8, "epochs": 1, "image_size": 32, "label_smoothing": 0, "lr": 0.01, "trackers": "[]"}
    run_json(
        *("finetune", "--init", trained, "--data", train, "--val-data", val, "--loss", "asymmetric"),
        *("--out", home / "run", "--backend", "opencv", "--workers", 1),
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    )
    return home / "run"
