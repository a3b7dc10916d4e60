"""A run that stops and resumes ends in the same bits as one that never stopped, whatever draws random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in21k.datapipe import create_loader
from in21k.datapipe.augment.mixup import MixSettings, create_mix
from in21k.shards import ShardSet
from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, train_model
from in21k.training.distill import Teacher
from in21k.training.init_weights import create_network
from in21k.training.run import Stopped

from .watched_runs import Watcher, assert_equal_runs, signal_at

SIZE = 32  # as the images are stored
MODULES = {"torch": "torch", "opencv": "cv2", "dali_cpu": "nvidia", "webdataset": "webdataset"}
BACKENDS = [
    pytest.param(backend, marks=pytest.mark.skipif(not find_spec(module), reason=f"{module} is not installed"))
    for backend, module in MODULES.items()
]
RANDOM = TrainSettings(
    model="test_efficientnet",
    model_args={"drop_rate": 0.3, "drop_path_rate": 0.3},
    image_size=SIZE,
    batch_size=4,
    accumulate=2,
    epochs=2,
    augment="inception-ra",
    mixup=0.8,
    cutmix=0.8,
    ema=0.9,
    trackers=[],
    workers=1,
)


def train_on_shards(shards: ShardSet, folder: Path, settings: TrainSettings, progress: Watcher | None = None) -> Any:
    """Train as `in21k train` does, 6 steps an epoch."""

    def open_split(split: str) -> Any:
        return create_loader(
            shards,
            split=split,
            backend=settings.backend,
            batch_size=settings.batch_size,
            image_size=SIZE,
            augment=settings.augment if split == "train" else "none",
            seed=settings.seed,
            workers=settings.workers,
        )

    loader, val_loader = open_split("train"), open_split("val")
    try:
        return train_model(
            model=create_network(settings, shards.tree.wnids),
            loader=loader,
            val_loader=val_loader,
            tree=shards.tree,
            settings=settings,
            folder=folder,
            mix=create_mix(MixSettings(mixup=settings.mixup, cutmix=settings.cutmix), settings.seed),
            progress=progress,
        )
    finally:
        val_loader.close()
        loader.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_with_dropout_drop_path_mixing_and_a_moving_average_resumes_to_the_bit(
    shard_set: ShardSet, tmp_path: Path, backend: str
) -> None:
    settings = replace(
        RANDOM, backend=backend, epoch_samples=len(shard_set.split("train")) if backend == "webdataset" else None
    )

    def begin(name: str, progress: Watcher | None = None) -> Any:
        torch.manual_seed(settings.seed)
        return train_on_shards(shard_set, tmp_path / name, settings, progress)

    whole = begin("whole")
    assert whole["num_steps"] == 12
    for step in (3, 8):  # in the middle of an epoch
        assert begin("stopped", signal_at(step - 1)) == Stopped(step, 12)
    assert begin("stopped") == whole
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_draws_from_no_global_generator(shard_set: ShardSet, backend: str) -> None:
    torch.manual_seed(5)
    wanted = torch.get_rng_state()
    for split in ("train", "val"):
        loader = create_loader(shard_set, split=split, backend=backend, batch_size=4, image_size=SIZE, workers=1)
        assert len(list(loader)) >= 3
        loader.close()
    assert torch.equal(torch.get_rng_state(), wanted)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_the_loader_mixing_the_teacher_and_validation_draw_changes_no_step(
    tree: SemanticTree, make_model: Callable[..., nn.Module], make_loader: Any, tmp_path: Path, accumulate: int
) -> None:
    plain = ((0.0,) * 3, (1.0,) * 3)
    settings = TrainSettings(
        **{"model": "resnet18", "image_size": 16, "batch_size": 8, "epochs": 3, "lr": 0.02, "trackers": []},
        **{"accumulate": accumulate, "teacher": "trained", "kd_weight": 1.0},
    )
    trained = make_model(dropout=0)
    alone = replace(settings, teacher=None, accumulate=1, epochs=20)
    train_model(
        model=trained, loader=make_loader(), val_loader=None, tree=tree, settings=alone, folder=tmp_path / "teacher"
    )

    def run(name: str, draw: Callable[[], object]) -> Path:
        def mix(images: Tensor, labels: Tensor, epoch: int, batch: int) -> Any:
            draw()
            return images, (labels, labels, 1.0)

        class DrawingLoader:
            def __init__(self, batch_size: int) -> None:
                self.loader = make_loader(batch_size=batch_size)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.loader, name)

            def __len__(self) -> int:
                return len(self.loader)

            def __iter__(self) -> Iterator[Any]:
                for batch in self.loader:
                    draw()
                    yield batch

        class DrawingTeacher(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                draw()
                return trained(images)

        teacher = Teacher(
            DrawingTeacher(), name="trained", outputs=torch.arange(6), mean_std=plain, student_mean_std=plain
        )
        train_model(
            model=make_model(dropout=0.3),
            loader=DrawingLoader(8),
            val_loader=DrawingLoader(40),
            tree=tree,
            settings=settings,
            folder=tmp_path / name,
            teacher=teacher,
            mix=mix,
        )
        return tmp_path / name

    assert_equal_runs(run("drawing", lambda: torch.rand(3)), run("silent", lambda: None))
