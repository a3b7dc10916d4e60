"""A whole run: what it leaves, how it goes on, when it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, train_model
from in21k.training.distill import Teacher
from in21k.training.distributed import Ranks
from in21k.training.loop import Trainer
from in21k.training.losses.create import create_loss
from in21k.training.run import Stopped
from in21k.training.runs.run_folder import open_run, run_config
from in21k.training.runs.run_record import read_record
from in21k.training.tracker import NonFiniteLossError

from .watched_runs import KilledError, Watcher, assert_equal_runs, kill_at, lines_of, signal_at, weights_of

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
            "loader": make_loader(),
            "val_loader": make_loader(batch_size=40),
            "folder": run_path,
        }
        return train_model(tree=tree, settings=chosen, **(usual | changes))

    return run


def test_a_finished_run_holds_what_the_contract_lists(run_training: Train, run_path: Path, tree: SemanticTree) -> None:
    metrics = run_training(data={"num_train": 96})
    actual = sorted(str(path.relative_to(run_path)) for path in run_path.rglob("*") if path.is_file())
    wanted = ["checkpoints/best.pt", "checkpoints/last.pt", "config.json", "config.yaml", "log.jsonl", "metrics.json"]
    assert actual[:-1] == [*wanted, "model.safetensors", "tensorboard/" + actual[-2].partition("/")[2]]
    assert actual[-1] == "tree.json"
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
@pytest.mark.parametrize("save_every_steps", [None, 1, 4, 6])
def test_a_run_that_was_killed_ends_bit_equal_to_one_that_was_not(
    run_training: Train,
    run_path: Path,
    tmp_path: Path,
    settings: TrainSettings,
    step: int,
    save_every_steps: int | None,
) -> None:
    whole = run_training(folder=tmp_path / "whole")
    saving = replace(settings, save_every_steps=save_every_steps)
    with pytest.raises(KilledError):
        run_training(progress=kill_at(step), settings=saving)
    assert not (run_path / "metrics.json").exists()
    with (run_path / "log.jsonl").open("a") as log:
        log.write('{"step": 1')  # the kill came in the middle of a line
    watcher = Watcher()
    assert run_training(progress=watcher, settings=saving) == whole
    every = save_every_steps or 6
    assert watcher.begun_at == max((step - 1) // every * every, (step - 1) // 6 * 6)
    assert_equal_runs(run_path, tmp_path / "whole")


@pytest.mark.parametrize(
    "changes", [{"ema": 0.9}, {"accumulate": 2}, {"optimizer": "sgd"}, {"schedule": "cosine"}, {"clip_grad": 0.1}]
)
def test_whatever_was_killed_at_every_second_step_ends_bit_equal(
    run_training: Train, run_path: Path, tmp_path: Path, settings: TrainSettings, changes: dict[str, Any]
) -> None:
    changed = replace(settings, **changes)
    whole = run_training(folder=tmp_path / "whole", settings=changed)
    for step in range(2, whole["num_steps"] + 1, 2):
        with pytest.raises(KilledError):
            run_training(progress=kill_at(step), settings=replace(changed, save_every_steps=1))
    assert run_training(settings=changed) == whole
    assert_equal_runs(run_path, tmp_path / "whole")


class KilledAtItsValidation(Watcher):
    """Is killed after the first validation that it is told of, before the save that follows."""

    def on_validation(self, line: Mapping[str, Any]) -> None:  # noqa: ARG002 – the form that Progress asks for
        raise KilledError


def test_a_validation_that_comes_again_after_a_kill_is_logged_once(run_training: Train, run_path: Path) -> None:
    with pytest.raises(KilledError):
        run_training(progress=KilledAtItsValidation())
    run_training()
    assert [line["step"] for line in lines_of(run_path) if "validation" in line] == [6, 12, 18]


class SignalledAtTheStart(Watcher):
    """Is asked to stop before the first step."""

    def on_start(self, step: int, total_steps: int) -> None:
        super().on_start(step, total_steps)
        signal.raise_signal(signal.SIGUSR1)


def test_a_signal_before_the_first_step_stops_the_run_after_it(run_training: Train) -> None:
    assert run_training(progress=SignalledAtTheStart()) == Stopped(1, 18)


def test_checkpoints_are_kept_also_of_data_that_has_no_place(
    run_training: Train, settings: TrainSettings, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in21k.training.run.place_of", lambda _: None)  # `best` is then saved before the first `last`
    run_training(settings=replace(settings, keep_last=2))
    for step in (12, 18):
        kept = torch.load(run_path / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)
        assert kept["position"]["step"] == step


@pytest.mark.parametrize("step", [3, 6, 18])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_run_after_its_step_and_it_goes_on_from_there(
    run_training: Train, run_path: Path, tmp_path: Path, step: int, number: int
) -> None:
    before = signal.getsignal(number)
    whole = run_training(folder=tmp_path / "whole")
    stopped = run_training(progress=signal_at(step - 1, number) if step > 1 else None)
    assert stopped == Stopped(step, 18)
    assert signal.getsignal(number) == before
    assert not (run_path / "metrics.json").exists()
    watcher = Watcher()
    assert run_training(progress=watcher) == whole
    assert (watcher.begun_at, watcher.total) == (step, 18)
    assert_equal_runs(run_path, tmp_path / "whole")


def test_a_run_may_go_on_with_another_number_of_ranks_unless_deterministic(
    run_training: Train,
    run_path: Path,
    tree: SemanticTree,
    settings: TrainSettings,
    make_model: Any,
    make_loader: Any,
) -> None:
    """A rank with a batch of 16, then two of them: the schedule goes on from the share of images that were seen."""
    run_training(progress=signal_at(8))  # of 18
    loader = make_loader(world_size=2)
    trainer = Trainer(make_model(), create_loss(settings, tree), settings, Ranks())
    state = torch.load(run_path / "checkpoints" / "last.pt", weights_only=True)
    trainer.load_state_dict(state)
    loader.load_state_dict(state["loader"])
    assert trainer.plan(loader) == 9 + 1 + 3  # half of the second epoch, of 3 steps now, and the third


def test_accumulated_batches_step_as_one_large_batch(
    run_training: Train, tmp_path: Path, settings: TrainSettings, make_model: Any, make_loader: Any
) -> None:
    curves = []
    for name, batch_size, accumulate in (("large", 32, 1), ("small", 8, 4)):
        changed = replace(settings, batch_size=batch_size, accumulate=accumulate, clip_grad=1.0)
        loader = make_loader(batch_size=batch_size)
        run_training(folder=tmp_path / name, settings=changed, loader=loader, model=make_model(dropout=0))
        curves.append([line["loss"] for line in lines_of(tmp_path / name) if "loss" in line])
    assert len(curves[0]) == 9
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_moving_average_is_validated_beside_the_weights_and_kept(
    run_training: Train, run_path: Path, settings: TrainSettings
) -> None:
    metrics = run_training(settings=replace(settings, ema=0.9))
    reached = [line["validation"]["ema"]["semantic_top1"] for line in lines_of(run_path) if "validation" in line]
    assert max(reached) == metrics["best_semantic_top1"]
    averaged = load_file(run_path / "model_ema.safetensors")
    weights = load_file(run_path / "model.safetensors")
    assert averaged.keys() == weights.keys()
    assert not torch.equal(averaged["5.weight"], weights["5.weight"])
    assert torch.allclose(averaged["5.weight"], weights["5.weight"], atol=0.1)


def test_the_moving_averages_decay_is_logged_and_follows_its_formula(
    run_training: Train, run_path: Path, settings: TrainSettings
) -> None:
    run_training(settings=replace(settings, ema=0.8, optimizer="sgd", lr=0.5))
    steps = [line for line in lines_of(run_path) if "loss" in line]
    decays = [line["ema_decay"] for line in steps]
    assert decays == pytest.approx([min(0.8, 1 - step ** (-2 / 3)) for step in range(1, 19)])
    assert (decays[0], decays[-1]) == (0, 0.8)


def test_the_first_step_makes_the_moving_average_and_later_ones_move_it(
    run_training: Train, tmp_path: Path, settings: TrainSettings
) -> None:
    weights = []
    for num_steps in (1, 2):
        folder = tmp_path / str(num_steps)
        run_training(folder=folder, settings=replace(settings, ema=0.8, max_steps=num_steps, schedule="constant"))
        files = [folder / f"model{suffix}.safetensors" for suffix in ("", "_ema")]
        weights.append([load_file(file)["5.weight"] for file in files])
    (first, averaged_first), (second, averaged_second) = weights
    assert torch.equal(averaged_first, first)
    decay = 1 - 2 ** (-2 / 3)
    torch.testing.assert_close(averaged_second, decay * first + (1 - decay) * second)


def test_the_last_checkpoints_are_kept(run_training: Train, run_path: Path, settings: TrainSettings) -> None:
    run_training(settings=replace(settings, keep_last=3, save_every_steps=5))
    actual = sorted(path.name for path in (run_path / "checkpoints").iterdir())
    assert actual == ["best.pt", "last.pt", "step-00000012.pt", "step-00000015.pt", "step-00000018.pt"]


def test_a_run_whose_last_checkpoint_is_damaged_resumes_from_the_newest_whole_one_bit_equal(
    run_training: Train, run_path: Path, tmp_path: Path, settings: TrainSettings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(settings, keep_last=3, save_every_steps=4)
    run_training(settings=settings, folder=tmp_path / "whole")
    with pytest.raises(KilledError):
        run_training(settings=settings, progress=kill_at(14))
    checkpoints = run_path / "checkpoints"
    for name in ("last.pt", "step-00000012.pt"):
        (checkpoints / name).write_bytes((checkpoints / name).read_bytes()[:-100])
    run_training(settings=settings)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert f"resuming from {checkpoints / 'step-00000008.pt'}" in caplog.text
    assert weights_of(run_path).keys() == weights_of(tmp_path / "whole").keys()
    for name in ("model.safetensors", "metrics.json"):
        assert (run_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [line["step"] for line in lines_of(run_path) if "loss" in line] == list(range(1, 19))


def test_a_run_whose_every_checkpoint_is_damaged_stops_and_keeps_them(
    run_training: Train, run_path: Path, settings: TrainSettings
) -> None:
    with pytest.raises(KilledError):
        run_training(settings=settings, progress=kill_at(14))
    last = run_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    damaged = last.read_bytes()
    with pytest.raises(ValueError, match=r"--set init=.*best\.pt .*--overwrite to train anew"):
        run_training(settings=settings)
    assert last.read_bytes() == damaged


class Colours(nn.Module):
    """A teacher that tells the class of an image by its mean colour."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.colours = torch.stack([images[labels == label].mean(dim=(0, 2, 3)) for label in range(6)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -100 * torch.cdist(images.mean(dim=(2, 3)), self.colours)


def test_a_student_learns_from_a_teacher_alone(
    run_training: Train, run_path: Path, settings: TrainSettings, make_loader: Any
) -> None:
    """Its labels are noise that shifts from image to image; what it learns is the teacher's."""
    loader = make_loader()
    colours, plain = Colours(loader.images, loader.labels), ((0.0,) * 3, (1.0,) * 3)
    teacher = Teacher(colours, name="colours", outputs=torch.arange(6), mean_std=plain, student_mean_std=plain)
    loader.labels = loader.labels[torch.randperm(96, generator=torch.Generator().manual_seed(1))]
    changed = replace(settings, epochs=40, teacher="colours", kd_weight=1000.0)
    metrics = run_training(settings=changed, loader=loader, teacher=teacher)
    assert metrics["semantic_top1"] > metrics["semantic_top1_commonest"] + 15
    line = lines_of(run_path)[0]
    assert line["loss"] == pytest.approx(line["label_loss"] + 1000 * line["kd_loss"], rel=1e-4)


def test_mixing_is_told_epoch_and_batch_and_weighs_both_labels(
    run_training: Train, run_path: Path, settings: TrainSettings, make_model: Any
) -> None:
    told: list[tuple[int, int]] = []

    def mix(images: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int) -> Any:
        told.append((epoch, batch))
        return images, (labels, labels, 0.3)

    run_training(settings=replace(settings, accumulate=2, epochs=2), mix=mix, model=make_model(dropout=0))
    assert told == [(epoch, batch) for epoch in (0, 1) for batch in range(6)]
    mixed = [line["loss"] for line in lines_of(run_path) if "loss" in line]
    run_training(settings=replace(settings, accumulate=2, epochs=2), model=make_model(dropout=0), overwrite=True)
    assert [line["loss"] for line in lines_of(run_path) if "loss" in line] == pytest.approx(mixed, rel=1e-4)


def test_a_run_killed_before_metrics_finishes_without_training(run_training: Train, run_path: Path) -> None:
    metrics = run_training()
    (run_path / "metrics.json").unlink()
    watcher = Watcher()
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
    lines = lines_of(run_path)
    assert all("loss" in line for line in lines)
    written = json.loads((run_path / "nonfinite.json").read_text())
    assert written["step"] == len(lines) + 1
    assert written["place"] == {"epoch": 0, "samples": 16 * len(lines)}
    (culprit,) = written["ranks"]
    assert (culprit["rank"], culprit["loss"], len(culprit["samples"])) == (0, "nan", 16)
    assert "image 50" in culprit["samples"]


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile makes C++ on a CPU")
@pytest.mark.filterwarnings("default")  # of the compiler's
def test_a_compiled_network_has_the_curve_of_one_that_is_not(
    run_training: Train, tmp_path: Path, settings: TrainSettings, make_model: Any
) -> None:
    curves = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        run_training(folder=folder, settings=replace(settings, compile=compiled), model=make_model(dropout=0))
        curves.append([line["loss"] for line in lines_of(folder) if "loss" in line])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


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


def scores(values: list[float]) -> Callable[..., dict[str, Any]]:
    """Stand in for `evaluate`: semantic top-1 rises, and top-1 takes these values one after another."""
    left = list(values)

    def measure(model: nn.Module, **_: Any) -> dict[str, Any]:
        del model
        number = len(values) - len(left)
        return {"semantic_top1": 10.0 + number, "top1": left.pop(0), "num_samples": 80}

    return measure


@pytest.mark.parametrize(
    ("best_by", "best", "best_epoch"), [(None, 13.0, 3), ("semantic_top1", 13.0, 3), ("top1", 7.0, 1)]
)
def test_best_is_chosen_by_the_metric_that_is_named(
    run_training: Train,
    run_path: Path,
    settings: TrainSettings,
    monkeypatch: pytest.MonkeyPatch,
    best_by: str | None,
    best: float,
    best_epoch: int,
) -> None:
    monkeypatch.setattr("in21k.training.run.evaluate", scores([3, 7, 5, 7]))
    metrics = run_training(settings=replace(settings, epochs=4, best_by=best_by))
    assert (metrics[f"best_{best_by or 'semantic_top1'}"], metrics["best_epoch"]) == (best, best_epoch)
    assert [name for name in metrics if name.startswith("best_")] == [
        f"best_{best_by or 'semantic_top1'}",
        "best_epoch",
    ]
    saved = torch.load(run_path / "checkpoints" / "best.pt", weights_only=True)
    assert saved["position"]["step"] == 6 * (best_epoch + 1)
    assert read_record(run_path).best == (best, best_epoch)


@pytest.mark.parametrize(
    ("values", "patience", "every", "num_epochs"),
    [
        ([5, 4, 4, 4, 4, 4], 2, 1, 3),
        ([5, 4, 6, 4, 6, 9], 2, 1, 5),  # an equal value is not an improvement
        ([1, 2, 3, 4, 5, 6], 1, 1, 6),
        ([5, 4, 9], 2, 2, 4),  # the validations end the epochs 1, 3 and 5
        ([5, 4, 3], 3, 2, 6),
        ([5, 4, 4, 4, 4, 4], None, 1, 6),
    ],
)
def test_a_run_ends_when_its_patience_does(
    run_training: Train,
    run_path: Path,
    settings: TrainSettings,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    patience: int | None,
    every: int,
    num_epochs: int,
) -> None:
    monkeypatch.setattr("in21k.training.run.evaluate", scores(values))
    chosen = replace(settings, epochs=6, best_by="top1", patience=patience, validate_every_epochs=every)
    metrics = run_training(settings=chosen)
    assert (metrics["num_epochs"], metrics["num_steps"]) == (num_epochs, 6 * num_epochs)
    assert (run_path / "model.safetensors").exists()
    assert run_training(settings=chosen) == metrics  # it is finished
    with pytest.raises(ValueError, match="patience"):
        run_training(settings=replace(chosen, patience=4))


@pytest.mark.parametrize("at", [9, 18, 20])
def test_a_resumed_run_has_the_patience_of_one_that_never_stopped(
    run_training: Train, tmp_path: Path, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    chosen = replace(settings, epochs=6, best_by="top1", patience=2)
    values = [4.0, 9.0, 8.0, 8.0]
    monkeypatch.setattr("in21k.training.run.evaluate", scores(values))
    whole = run_training(settings=chosen, folder=tmp_path / "whole")
    assert (whole["num_epochs"], whole["best_epoch"]) == (4, 1)
    monkeypatch.setattr("in21k.training.run.evaluate", scores(values))
    assert isinstance(run_training(settings=chosen, progress=signal_at(at)), Stopped)
    assert run_training(settings=chosen) == whole
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_patience_and_best_by_want_what_validation_measures(run_training: Train, settings: TrainSettings) -> None:
    with pytest.raises(ValueError, match="patience is 3, and there are no validation images"):
        run_training(settings=replace(settings, patience=3), val_loader=None)
    with pytest.raises(ValueError, match=r"best_by is 'map', .* images of one label; wanted semantic_top1, top1"):
        run_training(settings=replace(settings, best_by="map"))
    with pytest.raises(ValueError, match="best_by is 'accuracy'; wanted one of semantic_top1, "):
        replace(settings, best_by="accuracy")
