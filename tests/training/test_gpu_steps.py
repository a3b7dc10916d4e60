"""What only a GPU can show of training steps (`pytest -m gpu`): precision, compiling, NCCL, SyncBN, resuming."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from in21k.training import TrainSettings, train_model
from in21k.training.distributed import Ranks, join_ranks
from in21k.training.loop import Trainer
from in21k.training.losses.create import create_loss
from in21k.training.run import Stopped
from in21k.training.tracker import Tracker

from .conftest import MemoryLoader, small_data, small_model, small_tree
from .test_gpu import no_waiting
from .watched_runs import assert_equal_runs, signal_at

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
SETTINGS = TrainSettings(
    model="resnet18", image_size=16, batch_size=16, epochs=2, lr=0.02, ema=0.9, amp="off", trackers=[], seed=0
)


def cuda() -> Ranks:
    return Ranks(device=torch.device("cuda"))


def losses(settings: TrainSettings, ranks: Ranks, model: nn.Module | None = None) -> list[float]:
    """Train an epoch of the small network; return the loss of each step."""
    actual = list[float]()

    class Log:
        def write(self, line: dict[str, float]) -> None:
            actual.append(line["loss"])

        def close(self) -> None: ...

    trainer = Trainer(model or small_model(0.0), create_loss(settings, small_tree()), settings, ranks)
    loader = MemoryLoader(*small_data(), batch_size=settings.batch_size)
    trainer.plan(loader)
    trainer.train_epoch(loader, Tracker(ranks, [Log()], None), lambda: None)  # pyright: ignore[reportArgumentType]
    return actual


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_steps_on_a_gpu_lose_what_those_on_a_cpu_do(amp: str) -> None:
    wanted = losses(SETTINGS, Ranks())
    assert len(wanted) == 6
    measured = losses(replace(SETTINGS, amp=amp, channels_last=True), cuda())
    if amp == "fp16":  # the scaler may skip the first steps until it has its scale
        wanted, measured = wanted[:1], measured[:1]
    assert measured == pytest.approx(wanted, rel=0.01 if amp == "off" else 0.1)  # TF32; 8 bits


def test_compiled_steps_lose_what_others_do() -> None:
    wanted = losses(SETTINGS, cuda())
    assert losses(replace(SETTINGS, compile=True), cuda()) == pytest.approx(wanted, rel=0.01)


class InOrder(MemoryLoader):
    """Yields slices: picking rows by number, from the CPU, would wait."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


class Unread(Tracker):
    """A tracker that never reads what it noted from the device."""

    def tell(self) -> bool:
        self._begin()
        return False


def test_a_step_does_not_wait_for_the_gpu() -> None:
    settings, ranks = replace(SETTINGS, amp="bf16", channels_last=True), cuda()
    trainer = Trainer(small_model(), create_loss(settings, small_tree()), settings, ranks)
    images, labels = (tensor.cuda() for tensor in small_data())
    loader, tracker = InOrder(images, labels, batch_size=16), Unread(ranks, [], None)
    trainer.plan(loader)
    trainer.train_epoch(loader, tracker, lambda: None)  # kernels are compiled, states exist
    with no_waiting():
        trainer.train_epoch(loader, tracker, lambda: None)


@pytest.fixture
def one_nccl_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """The only rank of a group that talks through NCCL."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29517")
    with join_ranks("cuda") as ranks:
        yield ranks


def test_a_group_of_one_rank_talks_through_nccl(one_nccl_rank: Ranks) -> None:
    assert dist.get_backend() == "nccl"
    tensor = torch.arange(3.0, device="cuda")
    dist.all_reduce(tensor)
    assert tensor.tolist() == [0, 1, 2]
    assert losses(SETTINGS, one_nccl_rank) == pytest.approx(losses(SETTINGS, cuda()), rel=0.01)


def test_synchronized_batch_norm_of_one_rank_is_batch_norm(one_nccl_rank: Ranks) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda()
    images = small_data(16)[0].cuda()
    wanted = plain(images)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    assert isinstance(synchronized[1], nn.SyncBatchNorm)
    torch.testing.assert_close(synchronized(images), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_run_that_sigterm_stops_resumes_to_the_same_bits(tmp_path: Path, amp: str) -> None:
    settings = replace(SETTINGS, deterministic=True, amp=amp, log_every_steps=1)

    def train(folder: Path, stop_at: int = -1) -> object:
        return train_model(
            model=small_model(),
            loader=MemoryLoader(*small_data(), batch_size=16),
            val_loader=None,
            tree=small_tree(),
            settings=settings,
            folder=folder,
            ranks=cuda(),
            progress=signal_at(stop_at, signal.SIGTERM),
        )

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        train(tmp_path / "whole")
        assert isinstance(train(tmp_path / "stopped", stop_at=4), Stopped)
        train(tmp_path / "stopped")
        assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
    finally:
        torch.use_deterministic_algorithms(False)
