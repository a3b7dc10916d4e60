"""finetune, from each kind of data, judged by what it prints and the files it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from in21k.training import load_run
from in21k.training.recipes import read_recipe

from .conftest import run, run_json

COLOURS = {"red dog": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def words(out: Path, **settings: object) -> list[object]:
    """The words of a fine-tuning that takes seconds."""
    settings = {"batch_size": 8, "epochs": 1, "image_size": 32, "workers": 1, "trackers": "[]", **settings}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--out", out, "--backend", "torch", "--workers", 1, *sets]


def write_mnist(folder: Path) -> None:
    """Write the four files in which torchvision finds MNIST, with 20 and 10 drawn digits."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for part, count in {"train": 20, "t10k": 10}.items():
        pixels = draws.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in {"images-idx3": pixels, "labels-idx1": labels}.items():
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())


def config_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / "config.yaml").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of coloured images: train and val, three classes, and lists that give each several labels."""
    home = tmp_path_factory.mktemp("finetune")
    draws = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 2}.items():
        lines: list[str] = []
        for name, colour in COLOURS.items():
            (home / "folders" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + draws.normal(0, 25, (40, 36, 3))
                path = home / "folders" / split / name / f"{number}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                labels = {"red dog": "red,warm", "green": "green", "blue": "blue,cold"}[name]
                lines.append(f"{path.relative_to(home)} {labels}")
        (home / f"{split}.txt").write_text("\n".join(lines))
    (home / "none.txt").write_text("\n".join(f"{line.partition('.png')[0]}.png -" for line in lines))
    return home


@pytest.fixture(scope="module")
def folders_run(trained: Path, images: Path) -> Path:
    """A run of everything that fine-tuning may ask of the trainer, from class folders."""
    out = images / "run"
    result = run_json(
        *("finetune", "--init", trained, "--data", images / "folders", "--loss", "cross-entropy"),
        *words(out, epochs=2, layer_decay=0.75, mixup=0.2, cutmix=0.5, ema=0.5, augment="miil"),
    )
    assert result["num_samples"] == 6
    return out


def test_class_folders_with_what_a_recipe_may_ask_for(folders_run: Path, trained: Path, images: Path) -> None:
    config = config_of(folders_run)
    assert (config["model"], config["init"], config["layer_decay"]) == ("resnet10t", str(trained), 0.75)
    assert config["data"]["num_samples"] == {"train": 24, "val": 6}
    metrics = json.loads((folders_run / "metrics.json").read_text())
    assert metrics["ema"]["num_samples"] == 6
    assert load_run(folders_run).tree.names == ("blue", "green", "red dog")
    assert {path.name for path in (images / "run-data").iterdir()} == {"dataset.json", "shards"}


def test_the_same_again_says_so_and_its_packed_images_serve_again(folders_run: Path, images: Path) -> None:
    output = run(
        *("finetune", "--init", config_of(folders_run)["init"], "--data", images / "folders"),
        *("--loss", "cross-entropy"),
        *words(folders_run, epochs=2, layer_decay=0.75, mixup=0.2, cutmix=0.5, ema=0.5, augment="miil"),
    )
    assert output.exit_code == 0, output.output
    plan = run_json(
        *("finetune", "--init", folders_run, "--data", images / "run-data", "--dry-run"),
        *words(images / "another", epochs=3),
    )
    assert (plan["num_classes"], plan["num_samples"]) == (3, {"train": 24, "val": 6})
    assert not (images / "another").exists()
    validated = run_json("validate", folders_run, "--data", images / "run-data" / "shards", "--backend", "torch")
    assert validated["num_samples"] == 6


def test_a_sliced_head_begins_with_the_rows_of_its_classes(folders_run: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = folders_run / "checkpoints" / "last.pt"
    run_json(
        *("finetune", "--init", checkpoint, "--data", images / "run-data"),
        *words(tmp_path / "run", init_head="slice", max_steps=1, lr=1e-9),
    )
    begun, kept = (load_run(path, which) for path, which in ((folders_run, "ema"), (tmp_path / "run", "last")))
    rows = [item.model.get_parameter("fc.weight") for item in (begun, kept)]
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["asymmetric", "bce"])
def test_lists_of_several_labels_measure_the_map(trained: Path, images: Path, tmp_path: Path, loss: str) -> None:
    lists = ("--val-data", images / "val.txt") if loss == "asymmetric" else ("--val-share", 0.25)
    result = run_json(
        *("finetune", "--init", trained, "--data", images / "train.txt", "--loss", loss, *lists),
        *words(tmp_path / "run", epochs=4, label_smoothing=0, lr=3e-3),
    )
    assert result["num_samples"] == 6
    assert [row["name"] for row in result["per_label"]] == ["blue", "cold", "green", "red", "warm"]
    assert result["map"] > result["map_chance"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert result["best_map"] == max(line["validation"]["map"] for line in lines if "validation" in line)
    assert load_run(tmp_path / "run", "best").model.get_parameter("fc.weight").shape[0] == 5
    assert (tmp_path / "run-data" / "label_sets.parquet").exists()
    again = run_json(
        *("finetune", "--init", tmp_path / "run", "--data", tmp_path / "run-data", "--loss", "bce", "--dry-run"),
        *words(tmp_path / "again"),
    )
    assert again["num_classes"] == 5


def test_one_label_that_images_have_or_lack_is_learnt(trained: Path, images: Path, tmp_path: Path) -> None:
    lines = [f"{images}/{line}" for line in (images / "train.txt").read_text().splitlines()]
    one = [line if line.endswith("green") else f"{line.partition('.png')[0]}.png -" for line in lines]
    (tmp_path / "list.txt").write_text("\n".join(one))
    result = run_json(
        *("finetune", "--init", trained, "--data", tmp_path / "list.txt", "--loss", "bce", "--val-share", 0.4),
        *words(tmp_path / "run", max_steps=1),
    )
    assert (result["num_labels"], result["num_samples"]) == (1, 10)
    assert result["map_chance"] <= result["map"] <= 100


def test_a_data_set_of_torchvisions(trained: Path, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    result = run_json(
        *("finetune", "--init", trained, "--data", f"torchvision:MNIST:{tmp_path}"), *words(tmp_path / "run")
    )
    assert result["num_samples"] == 10
    assert load_run(tmp_path / "run").tree.names[3] == "3 - three"


def test_shards_and_a_file_of_weights(trained: Path, shards: Path, tmp_path: Path) -> None:
    alone = shutil.copy(trained / "model.safetensors", tmp_path / "weights.safetensors")
    request = ("finetune", "--init", alone, "--data", shards, *words(tmp_path / "run", max_steps=1))
    refused = run(*request)
    assert refused.exit_code == 2
    assert "holds weights alone; name their network by --model" in refused.stderr
    assert run_json(*request, "--model", "resnet10t")["num_steps"] == 1
    assert not (tmp_path / "run-data").exists()


def test_more_scores_than_a_rank_should_hold_are_refused_before_training(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in21k.training.evaluation.multilabel.MAX_SCORES", 5)
    lists = ("--data", images / "train.txt", "--val-data", images / "val.txt", "--loss", "bce")
    refused = run("finetune", "--init", trained, *lists, *words(tmp_path / "run"))
    assert refused.exit_code == 2
    assert "give a smaller validation list" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "data", "measured"),
    [
        ("finetune-imagenet1k", ("folders",), "top1"),
        ("finetune-cifar100", ("folders",), "top1"),
        ("finetune-multilabel", ("train.txt", "--val-data", "{images}/val.txt"), "map"),
    ],
)
def test_the_recipes_train(
    recipe: str, data: tuple[str, ...], measured: str, trained: Path, images: Path, tmp_path: Path
) -> None:
    given, *also = data
    result = run_json(
        *("finetune", "--init", trained, "--data", images / given, *(item.format(images=images) for item in also)),
        *("--recipe", recipe, *words(tmp_path / "run", epochs=1)),
    )
    assert 0 <= result[measured] <= 100
    config, request = config_of(tmp_path / "run"), read_recipe(recipe)
    own = {"model", "normalize", "image_size", "batch_size", "epochs"}  # of --init, or small here
    assert {name: config[name] for name in request.keys() - own} == {
        name: request[name] for name in request.keys() - own
    }
    assert (config["model"], config["normalize"]) == ("resnet10t", "unit")


def test_packing_alone(trained: Path, images: Path, tmp_path: Path) -> None:
    packed = run_json(
        *("finetune", "--init", trained, "--data", images / "folders", "--pack-only"),
        *("--data-out", tmp_path / "packed"),
        *words(tmp_path / "run", augment="inception"),
    )
    assert packed["num_samples"] == {"train": 24, "val": 6}
    info = json.loads((tmp_path / "packed" / "shards" / "dataset.json").read_text())
    assert (info["images"]["resize"], info["images"]["size"]) == ("short-edge", 37)  # room for crops of 32
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_pack_once_and_train_together(trained: Path, images: Path, tmp_path: Path) -> None:
    program = "from in21k.cli.main import main; main()"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", sys.executable]
    command = ["finetune", "--init", trained, "--data", images / "train.txt", "--loss", "asymmetric"]
    command += ["--val-data", images / "val.txt", "--device", "cpu", *words(tmp_path / "run", batch_size=4)]
    done = subprocess.run(
        [sys.executable, *launch, "-c", program, *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_samples"] == 6


@pytest.mark.parametrize("kind", ["folders", "train.txt", "torchvision"])
def test_a_dry_run_plans_without_packing_what_the_packed_images_then_give(
    trained: Path, images: Path, tmp_path: Path, kind: str
) -> None:
    write_mnist(tmp_path / "mnist")
    data = {
        "folders": (images / "folders",),
        "train.txt": (images / "train.txt", "--val-share", 0.25, "--loss", "bce"),
        "torchvision": (f"torchvision:MNIST:{tmp_path / 'mnist'}",),
    }[kind]
    before = sorted(tmp_path.rglob("*"))
    request = ("finetune", "--init", trained, "--data", *data, *words(tmp_path / "run", accumulate=2))
    plan = run_json(*request, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert not plan.pop("packed")
    assert "is not packed yet" in run(*request, "--dry-run").stdout
    run_json(*request, "--pack-only")
    packed = run_json(*request, "--dry-run")
    same = {"data": plan["data"], "machine": plan["machine"]}  # the load moves
    assert packed | same == plan
    assert packed["data"] == f"{plan['data']}/shards"


def test_a_dry_run_without_packing_takes_the_samples_of_an_epoch_as_training_does(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    command = ("finetune", "--init", trained, "--data", images / "folders", "--dry-run", *words(tmp_path / "run"))
    plan = run_json(*command, "--backend", "webdataset", "--set", "epoch_samples=17")
    assert (plan["steps_per_epoch"], plan["skipped_per_epoch"]) == (2, 1)


def test_a_dry_run_names_listed_images_that_do_not_exist(
    trained: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{images}/{line.split(',')[0]}" for line in (images / "train.txt").read_text().splitlines()]
    absent = [line.replace(".png", "-absent.png") for line in lines]
    some, none = tmp_path / "some.txt", tmp_path / "none.txt"
    some.write_text("\n".join([*lines, *absent[:2]]))
    none.write_text("\n".join(absent))
    request = ("--loss", "asymmetric", "--dry-run", *words(tmp_path / "run"))
    result = run("finetune", "--init", trained, "--data", some, *request)
    assert f"2 of {len(lines) + 2} images listed do not exist (the first: " in caplog.text
    assert result.exit_code == 0
    result = run("finetune", "--init", trained, "--data", none, *request)
    assert "none of the listed images exists (the first: " in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "nothing"], "nothing: does not exist; wanted shards, class folders"),
        (["--data", "torchvision:MNIST"], "wanted torchvision:NAME:FOLDER"),
        (["--data", "{images}/train.txt", "--val-data", "{images}/val.txt"], "wanted --loss bce or --loss asymmetric"),
        (["--data", "{images}/folders", "--model", "resnet18"], "is a resnet10t, and --model resnet18 was given"),
        (["--data", "{images}/train.txt", "--val-share", "1"], "--val-share is 1.0; wanted a share of the images"),
        (["--data", "{images}/train.txt", "--val-share", "nan"], "--val-share is nan; wanted a share of the images"),
        (["--data", "{images}/train.txt", "--max-reject-rate", "1.5"], "--max-reject-rate is 1.5; wanted a share"),
        (["--data", "{images}/folders", "--val-share", "0.1"], "a share of 0.1 to hold back was given too"),
        (["--data", "torchvision:MNIST:{images}", "--val-share", "0.1"], "without --val-data and --val-share"),
        (["--data", "{shards}", "--pack-only"], "are shards, with their own split"),
        (["--data", "{shards}", "--val-share", "0.1"], "leave out what is about packing: --val-share\n"),
        (["--data", "{shards}", "--max-reject-rate", "0.01"], "leave out what is about packing: --max-reject-rate\n"),
        (["--data", "{images}/none.txt", "--loss", "bce"], "all training images have no label"),
        (["--data", "{images}/none.txt", "--loss", "bce", "--dry-run"], "all training images have no label"),
    ],
)
def test_a_mistake_is_one_line(
    trained: Path, images: Path, shards: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    items = [word.format(images=images, shards=shards) for word in given]
    result = run("finetune", "--init", trained, *items, *words(tmp_path / "run"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []  # before anything is packed
    assert len([line for line in result.stderr.splitlines() if line.startswith("in21k: ")]) == 1
