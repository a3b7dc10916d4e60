"""Configurations and checkpoints of runs with each key removed, mistyped or nulled: one line, or they open."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from in21k.models import create_model
from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, load_run, train_model
from in21k.training.runs.checkpoint import FORMAT, VERSION, load_checkpoint, open_parts
from in21k.training.runs.run_folder import OPENING, check_config

OTHERS: list[Any] = [None, "text", -1, 3.5, True, [], [1], {}, {"a": 1}, [None], float("nan")]
SIZE = 32


class Loader:
    """Two batches of two images."""

    def __init__(self) -> None:
        self.epoch, self.left = 0, 2

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self.left:
            self.left -= 1
            yield torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])

    def num_left(self) -> int:
        return self.left

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.left = epoch, 2

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "samples": 2 * (2 - self.left)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.left = state["epoch"], 2 - state["samples"] // 2

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        return [str(state)]


SETTINGS = TrainSettings(
    model="test_resnet", image_size=SIZE, batch_size=2, epochs=1, ema=0.5, trackers=[], amp="off", model_args={}
)


def run_training(folder: Path) -> None:
    tree = SemanticTree.from_parents(["n0", "n1"], ["ant", "bee"], [-1, -1])
    model = create_model("test_resnet", num_classes=2)
    train_model(model=model, loader=Loader(), val_loader=None, tree=tree, settings=SETTINGS, folder=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a moving average."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    run_training(path)
    return path


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every key; of many tensors, numbers or classes the first two stand for all."""
    if isinstance(content, dict):
        keys = list(content)
        for key in keys if not at or at[0] in ("config", "position", "tree", "data") else keys[:2]:
            yield (*at, key)
            yield from places(content[key], (*at, key))
    elif isinstance(content, list):
        for number, value in enumerate(content[:2]):
            yield (*at, number)
            yield from places(value, (*at, number))


def changed(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    other = copy.deepcopy(content)
    within = other
    for key in place[:-1]:
        within = within[key]
    change(within, place[-1])
    return other


def mutants(content: Any) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    for number, place in enumerate(places(content)):
        yield place, "removed", changed(content, place, lambda within, key: within.__delitem__(key))
        for other in (None, OTHERS[1 + number % (len(OTHERS) - 1)], OTHERS[1 + (3 * number + 1) % (len(OTHERS) - 1)]):
            yield place, repr(other), changed(content, place, lambda within, key, o=other: within.__setitem__(key, o))


def refusal_of(run: Callable[[], object]) -> str:
    """Return the message with which something is refused; empty where it is not."""
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def test_a_configuration_with_any_key_changed_is_one_line_or_opens(folder: Path) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    num_refused = num_cases = 0
    for place, how, mutant in mutants(content):
        num_cases += 1
        refusal = refusal_of(lambda content=mutant: check_config(content, "config.yaml"))
        num_refused += bool(refusal)
        assert refusal.startswith("config.yaml: ") or not refusal, (place, how)
        assert "\n" not in refusal, (place, how)
    assert num_cases > 200
    assert num_refused > num_cases / 4


@pytest.mark.parametrize("name", [*OPENING, "data"])
def test_without_what_opens_a_network_none_is_opened(name: str, folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({key: content[key] for key in content if key != name}))
    with pytest.raises(ValueError, match=rf"config\.yaml: .*lacks {name}"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", ["", "3", "[1, 2]", "a: [", "1: 2", "data: 3", "\x00", "data: {world_size: many}"])
def test_what_is_no_configuration_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml") as refusal:
        load_run(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_run_of_another_version_is_opened_and_not_resumed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.safetensors", "tree.json", "metrics.json"):
        (run / name).write_bytes((folder / name).read_bytes())
    content = yaml.safe_load((folder / "config.yaml").read_text())
    del content["warmup"]
    (run / "config.yaml").write_text(yaml.safe_dump(content | {"in21k": "7.0", "gravity": 9.81}))
    saved = load_run(run)
    assert saved.settings == SETTINGS
    assert "was written by in21k 7.0, with settings that this one" in caplog.text
    assert "does not know: gravity; they are left out" in caplog.text
    with pytest.raises(ValueError, match=r"in21k 7\.0, with settings .* gravity; take that version"):
        run_training(run)


@pytest.mark.security
def test_a_checkpoint_with_any_key_changed_is_one_line_or_opens(folder: Path, tmp_path: Path) -> None:
    content = load_checkpoint(folder / "checkpoints" / "last.pt")
    num_cases = num_refused = 0
    for place, how, mutant in mutants(content):
        num_cases += 1
        refusal = refusal_of(lambda content=mutant: open_parts(content, Path("last.pt")))
        num_refused += bool(refusal)
        assert refusal.startswith("last.pt: ") or not refusal, (place, how)
        assert "\n" not in refusal, (place, how)
    assert num_cases > 300
    assert num_refused > num_cases / 4


@pytest.mark.parametrize("part", ["position", "model", "ema", "optimizer", "scaler", "loader", "config", "tree"])
def test_a_checkpoint_without_a_part_is_neither_opened_nor_resumed(part: str, folder: Path, tmp_path: Path) -> None:
    content = load_checkpoint(folder / "checkpoints" / "last.pt")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    last = run / "checkpoints" / "last.pt"
    torch.save({key: value for key, value in content.items() if key != part}, last)
    for resumes in (lambda: load_run(last), lambda: load_run(run), lambda: run_training(run)):
        with pytest.raises(ValueError, match=rf"last\.pt: not whole as a checkpoint \(it lacks {part}\)"):
            resumes()


def test_a_checkpoint_whose_optimizer_is_another_is_one_line(folder: Path, tmp_path: Path) -> None:
    content = load_checkpoint(folder / "checkpoints" / "last.pt")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    for optimizer in ({"state": {}, "param_groups": []}, {"state": {}, "param_groups": [{"lr": 1}]}):
        torch.save(
            content | {"optimizer": optimizer, "format": FORMAT, "version": VERSION}, run / "checkpoints/last.pt"
        )
        with pytest.raises(ValueError, match=r"last\.pt: does not fit this run") as refusal:
            run_training(run)
        assert "\n" not in str(refusal.value)
        with contextlib.suppress(ValueError):
            load_run(run)
