"""What only a GPU can show (`pytest -m gpu`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from in21k.datapipe import create_loader
from in21k.shards import ShardSet
from in21k.training import Ranks, SemanticSoftmaxLoss, TrainSettings, create_loss, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def test_dali_gpu_hands_out_what_the_reference_does(shard_set: ShardSet) -> None:
    pytest.importorskip("nvidia.dali")
    options = {"split": "train", "batch_size": 8, "image_size": 24}
    reference = list(create_loader(shard_set, backend="torch", device="cpu", **options))
    batches = list(create_loader(shard_set, backend="dali_gpu", **options))
    assert len(batches) == len(reference)
    for (images, labels), (expected, expected_labels) in zip(batches, reference, strict=True):
        assert images.is_cuda
        assert torch.equal(labels.cpu(), expected_labels)
        # The GPU decodes with its own inverse transform and resizes in other steps: close, not equal.
        assert (images.cpu() - expected).abs().mean() < 2 / 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_dali_gpu_makes_the_dtype_that_is_asked_for(shard_set: ShardSet, dtype: torch.dtype) -> None:
    pytest.importorskip("nvidia.dali")
    normalize = None if dtype == torch.uint8 else "unit"
    loader = create_loader(
        shard_set,
        split="val",
        backend="dali_gpu",
        batch_size=4,
        image_size=32,
        dtype=dtype,
        normalize=normalize,
        channels_last=True,
    )
    images, _ = next(iter(loader))
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_never_waits_for_the_gpu(shard_set: ShardSet) -> None:
    loss = SemanticSoftmaxLoss(shard_set.tree).cuda()
    logits = torch.randn(8, len(shard_set.tree), device="cuda", requires_grad=True)
    labels = torch.randint(len(shard_set.tree), (8,), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_training_runs_in_every_precision(shard_set: ShardSet, amp: str, tmp_path: Path) -> None:
    settings = TrainSettings(model="tiny", epochs=1, batch_size=16, amp=amp, image_size=32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, len(shard_set.tree)))
    options = {"batch_size": 16, "image_size": 32, "backend": "torch", "device": "cuda"}
    metrics = train(
        model=model,
        loss=create_loss(settings, shard_set.tree),
        loader=create_loader(shard_set, split="train", **options),
        val_loader=create_loader(shard_set, split="val", **options),
        tree=shard_set.tree,
        settings=settings,
        folder=tmp_path / "run",
        ranks=Ranks(device=torch.device("cuda")),
    )
    assert metrics["num_steps"] > 0
