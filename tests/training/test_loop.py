"""A whole run: what it leaves, how it goes on, when it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from in21k.shards.tree import SemanticTree
from in21k.training import NonFiniteLossError, Ranks, TrainSettings, create_loss, run_config, train
from in21k.training.run_folder import open_run

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def run_training(
    tree: SemanticTree, make_model: Callable[[], nn.Module], make_loader: Any, settings: TrainSettings, run_path: Path
) -> Train:
    """Train the small network on the small data; what is given takes the place of the usual."""

    def run(**changes: Any) -> dict[str, Any]:
        chosen: TrainSettings = changes.pop("settings", settings)
        usual: dict[str, Any] = {
            "model": make_model(),
            "loss": create_loss(chosen, tree),
            "loader": make_loader(),
            "val_loader": make_loader(batch_size=40),
            "folder": run_path,
        }
        return train(tree=tree, settings=chosen, **(usual | changes))

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]


class KilledError(Exception):
    pass


class StopAt:
    """A watcher that kills the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.begun_at: int | None = None

    def on_start(self, step: int, *_: object) -> None:
        self.begun_at = step

    def on_step(self, line: Mapping[str, Any]) -> None:
        if line["step"] == self.step:
            raise KilledError

    def on_validation(self, line: Mapping[str, Any]) -> None:
        pass


def test_a_finished_run_holds_what_the_contract_lists(run_training: Train, run_path: Path, tree: SemanticTree) -> None:
    metrics = run_training(data={"num_train": 96})
    found = sorted(str(path.relative_to(run_path)) for path in run_path.rglob("*") if path.is_file())
    wanted = ["checkpoints/best.pt", "checkpoints/last.pt", "config.json", "config.yaml", "log.jsonl"]
    assert found == [*wanted, "metrics.json", "model.safetensors", "tree.json"]
    assert json.loads((run_path / "metrics.json").read_text()) == metrics
    assert (metrics["num_epochs"], metrics["num_steps"], metrics["num_samples"]) == (3, 18, 80)
    assert SemanticTree.load(run_path / "tree.json") == tree
    config = yaml.safe_load((run_path / "config.yaml").read_text())
    assert config["amp"] == "off"  # resolved: on a CPU
    assert config["data"] == {"num_train": 96, "world_size": 1}


def test_the_log_has_each_step_once_and_a_line_per_validation(run_training: Train, run_path: Path) -> None:
    metrics = run_training()
    lines = lines_of(run_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 19))
    assert [line["epoch"] for line in steps] == [0] * 6 + [1] * 6 + [2] * 6
    assert all(line["images_per_s"] > 0 and 0 <= line["data_wait"] <= 1 for line in steps)
    assert max(line["lr"] for line in steps) == pytest.approx(0.02, rel=0.02)
    validations = [line for line in lines if "validation" in line]
    assert [line["step"] for line in validations] == [6, 12, 18]
    assert validations[-1]["validation"]["semantic_top1"] == metrics["semantic_top1"]
    assert max(line["validation"]["semantic_top1"] for line in validations) == metrics["best_semantic_top1"]


def test_it_learns(run_training: Train, settings: TrainSettings) -> None:
    metrics = run_training(settings=replace(settings, epochs=20))
    assert metrics["semantic_top1"] > metrics["semantic_top1_commonest"] + 15


@pytest.mark.parametrize("step", [1, 6, 9, 18])
def test_a_run_that_was_killed_ends_bit_equal_to_one_that_was_not(
    run_training: Train, run_path: Path, tmp_path: Path, step: int
) -> None:
    whole = run_training(folder=tmp_path / "whole")
    with pytest.raises(KilledError):
        run_training(progress=StopAt(step))
    assert not (run_path / "metrics.json").exists()
    with (run_path / "log.jsonl").open("a") as log:
        log.write('{"step": 1')  # the kill came in the middle of a line
    watcher = StopAt(-1)
    assert run_training(progress=watcher) == whole
    assert watcher.begun_at == (step - 1) // 6 * 6
    for name, tensor in weights_of(tmp_path / "whole").items():
        assert torch.equal(tensor, weights_of(run_path)[name])
    assert (run_path / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    varying = ("images_per_s", "data_wait")
    kept = [
        [{key: value for key, value in line.items() if key not in varying} for line in lines_of(folder)]
        for folder in (run_path, tmp_path / "whole")
    ]
    assert kept[0] == kept[1]


def test_a_run_killed_before_metrics_finishes_without_training(run_training: Train, run_path: Path) -> None:
    metrics = run_training()
    (run_path / "metrics.json").unlink()
    watcher = StopAt(18)
    assert run_training(progress=watcher) == metrics
    assert watcher.begun_at == 18


def test_a_finished_run_is_left_alone(
    run_training: Train, run_path: Path, settings: TrainSettings, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = run_training()
    before = {path: path.stat().st_mtime_ns for path in run_path.rglob("*")}
    with caplog.at_level("INFO"):
        assert run_training(settings=replace(settings, workers=3)) == metrics  # workers shape nothing
    assert "finished already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in run_path.rglob("*")} == before


def test_a_run_of_other_settings_is_refused_and_named_unless_overwritten(
    run_training: Train, run_path: Path, settings: TrainSettings
) -> None:
    run_training(data={"fingerprint": "a"})
    with pytest.raises(ValueError, match=r"other settings \(lr 0.02 -> 0.5\); .*--overwrite"):
        run_training(settings=replace(settings, lr=0.5), data={"fingerprint": "a"})
    with pytest.raises(ValueError, match="fingerprint 'a' -> 'b'"):
        run_training(data={"fingerprint": "b"})
    run_training(settings=replace(settings, epochs=1), data={"fingerprint": "b"}, overwrite=True)
    assert [line["step"] for line in lines_of(run_path)] == [1, 2, 3, 4, 5, 6, 6]


def test_a_folder_of_something_else_is_refused_even_to_overwrite(run_training: Train, run_path: Path) -> None:
    run_path.mkdir()
    (run_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds other files"):
            run_training(overwrite=overwrite)
    assert [path.name for path in run_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_at_its_first_file_starts_anew(run_training: Train, run_path: Path) -> None:
    run_path.mkdir()
    (run_path / "config.yaml.tmp").write_text("model: res")
    run_training()
    assert not list(run_path.rglob("*.tmp"))


def test_a_folder_is_one_runs_at_a_time(run_training: Train, run_path: Path, settings: TrainSettings) -> None:
    with (
        open_run(run_path, run_config(replace(settings, amp="off"), {}, 1), Ranks()),
        pytest.raises(ValueError, match="another in21k is training there"),
    ):
        run_training(settings=replace(settings, amp="off"))


def test_max_steps_ends_the_run_in_the_middle_of_an_epoch(run_training: Train, settings: TrainSettings) -> None:
    metrics = run_training(settings=replace(settings, max_steps=8))
    assert (metrics["num_steps"], metrics["num_epochs"]) == (8, 2)
    assert "semantic_top1" in metrics


def test_without_validation_there_is_no_best(run_training: Train, run_path: Path) -> None:
    metrics = run_training(val_loader=None)
    assert metrics == {"num_epochs": 3, "num_steps": 18}
    assert not (run_path / "checkpoints" / "best.pt").exists()


def test_validation_comes_every_so_many_epochs_and_at_the_end(
    run_training: Train, run_path: Path, settings: TrainSettings
) -> None:
    run_training(settings=replace(settings, validate_every_epochs=2))
    assert [line["epoch"] for line in lines_of(run_path) if "validation" in line] == [1, 2]


def test_a_lost_loss_stops_the_run_before_it_is_saved(run_training: Train, run_path: Path, make_loader: Any) -> None:
    loader = make_loader()
    loader.images[50] = float("inf")
    with pytest.raises(NonFiniteLossError, match=r"the loss of step [1-6] is nan; .*lower --set lr"):
        run_training(loader=loader)
    assert not (run_path / "checkpoints" / "last.pt").exists()
    assert all("loss" in line for line in lines_of(run_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"clip_grad": 0.5},
        {"channels_last": True},
        {"loss": "cross-entropy"},
        {"optimizer": "sgd"},
    ],
)
def test_each_way_of_training_brings_the_loss_down(
    run_training: Train, run_path: Path, settings: TrainSettings, changes: dict[str, Any]
) -> None:
    run_training(settings=replace(settings, **changes), val_loader=None)
    losses = [line["loss"] for line in lines_of(run_path)]
    assert sum(losses[-6:]) < sum(losses[:6])


def test_what_does_not_fit_is_refused_before_anything_is_written(
    run_training: Train, run_path: Path, settings: TrainSettings, make_loader: Any
) -> None:
    model = nn.Linear(3, 5)
    model.num_classes = 5  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the model has 5 classes, the data set 6"):
        run_training(model=model)
    with pytest.raises(ValueError, match="do not fill one batch"):
        run_training(loader=make_loader(batch_size=97))
    assert not run_path.exists()
