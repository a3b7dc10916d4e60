"""Every command that uses a network has it answer two images before it writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from .conftest import run, run_json
from .test_mistakes import assert_refused

VIT = "model_args={img_size: 32, depth: 1, embed_dim: 16, num_heads: 1}"


@pytest.fixture(scope="module")
def misfit(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a transformer for 32 pixels, whose configuration says 64."""
    path = tmp_path_factory.mktemp("misfit") / "run"
    sets = {"model": "vit_tiny_patch16_224", "batch_size": 16, "max_steps": 1, "workers": 1, "trackers": "[]"}
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    run_json("train", "--data", shards, "--out", path, "--backend", "torch", *words, "--set", VIT)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"image_size": 64}))
    return path


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--model", "efficientformer_l1"], ["takes no images of 32 x 32 pixels", "224 x 224 (--set image_size=224)"]),
        (["--model", "vit_tiny_patch16_224"], ["takes no images of 32 x 32 pixels", "model_args={img_size: 32}"]),
        (["--model", "resnet10t", "--set", "model_args={features_only: true}"], ["gives a list", "features_only"]),
        (["--model", "vit_tiny_patch16_224", "--set", f"{VIT[:-1]}, global_pool: ''}}"], ["gives (2, 5, 8)"]),
        (["--model", "resnet10t", "--set", "batch_size=1"], ["batch_size is 1", "--set batch_size=2"]),
    ],
)
def test_a_network_that_takes_no_such_images_is_not_trained(
    words: list[str], messages: list[str], dry_run: list[str], shards: Path, tmp_path: Path
) -> None:
    words = ["train", "--data", str(shards), "--out", str(tmp_path / "run"), "--device", "cpu", *words, *dry_run]
    assert_refused(run(*words), *messages)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_network_takes_no_such_images_answers_nothing(misfit: Path, shards: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    message = "takes no images of 64 x 64 pixels", "it takes 32 x 32"
    table = tmp_path / "out.parquet"
    for words in (
        ("validate", misfit, "--data", shards, "--save-predictions", table),
        ("features", misfit, table, "--data", shards),
        ("features", misfit, "--layer", "list"),
        ("predict", misfit, tmp_path / "image.png", "--out", table),
        ("export", misfit, tmp_path / "export"),
        ("average", misfit, misfit, tmp_path / "export"),
    ):
        assert_refused(run(*words), *message)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_a_teacher_that_takes_no_such_images_teaches_nobody(misfit: Path, shards: Path, tmp_path: Path) -> None:
    words = ("train", "--data", shards, "--out", tmp_path / "run", "--model", "resnet10t", "--teacher", misfit)
    for end in ((), ("--dry-run",)):
        refused = run(*words, "--set", "image_size=64", "--device", "cpu", *end)
        assert_refused(refused, "teacher", "takes no images of 64 x 64", "it takes 32 x 32 (--set teacher_size=32)")
    assert list(tmp_path.iterdir()) == []


def test_images_are_not_packed_for_what_cannot_be_trained(trained: Path, tmp_path: Path) -> None:
    for number in range(8):
        image = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(image)
    words = ("finetune", "--init", trained, "--data", tmp_path / "images", "--out", tmp_path / "run", "--device", "cpu")
    for sets, item in (
        (["batch_size=1"], "batch_size is 1, and the batch norm"),
        (["model_args={features_only: true}"], "gives a list for 2 images"),
        (
            ["model_args={channels: [32, 48, 64, 96]}"],
            "weights of resnet10t with other arguments",
        ),
    ):
        refused = run(*words, "--set", "image_size=32", *(word for item in sets for word in ("--set", item)))
        assert_refused(refused, item)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
