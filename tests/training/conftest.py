"""Small trees, small networks and a loader in memory for the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings

torch.set_num_threads(1)  # the networks are small, and the tests' processes share the cores


class MemoryLoader:
    """A loader over tensors, with the contract of the real ones: one order per epoch, shared out over the ranks."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.epoch = self.consumed = 0

    def __len__(self) -> int:
        return len(self.labels) // (self.batch_size * self.world_size)

    def num_left(self) -> int:
        return (len(self.labels) - self.consumed) // (self.batch_size * self.world_size)

    def _rows(self, state: dict[str, int]) -> Tensor:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(state["epoch"]))
        begin = state["samples"] + self.rank * self.batch_size
        return order[begin : begin + self.batch_size]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num_left()):
            taken = self._rows(self.state_dict())
            self.consumed += self.batch_size * self.world_size
            yield self.images[taken], self.labels[taken]
        self.consumed = 0

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "samples": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.consumed = state["epoch"], state["samples"]

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        return [f"image {row}" for row in self._rows(state).tolist()]


def small_tree() -> SemanticTree:
    """Three levels: animal > (bird > swan, fish) and plant > tree; indices out of order; the last level has one."""
    wnids = ["n5", "n2", "n4", "n1", "n3", "n0"]
    names = ["swan", "bird", "tree", "animal", "fish", "plant"]
    return SemanticTree.from_parents(wnids, names, [1, 3, 5, -1, 3, -1])


def small_data(num_images: int = 96) -> tuple[Tensor, Tensor]:
    """Images of 16 x 16 pixels, whose mean colour tells their class, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_images) % 6
    colours = torch.rand(6, 3, 1, 1, generator=generator)
    return colours[labels] + 0.1 * torch.rand(num_images, 3, 16, 16, generator=generator), labels


def small_model(dropout: float = 0.1) -> nn.Module:
    """A network without batch norm, always of the same weights."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(8, 6))


@pytest.fixture
def tree() -> SemanticTree:
    return small_tree()


@pytest.fixture
def make_loader() -> Callable[..., MemoryLoader]:
    """Make loaders over the small data."""
    return lambda batch_size=16, **ranks: MemoryLoader(*small_data(), batch_size, **ranks)


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """Make small networks."""
    return small_model


@pytest.fixture
def settings() -> TrainSettings:
    """A short run of the small network; `model` only goes into config.json."""
    return TrainSettings(model="resnet18", image_size=16, batch_size=16, epochs=3, lr=0.02)


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return tmp_path / "run"
