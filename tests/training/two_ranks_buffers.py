"""What test_distributed starts with torchrun: trains a network with batch norm on two ranks.

Argument: the file where rank 0 writes how far the ranks are apart, after an epoch and after their buffers were shared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from conftest import MemoryLoader, small_data, small_tree

from in21k.training import TrainSettings
from in21k.training.distributed import join_ranks
from in21k.training.loop import Trainer
from in21k.training.losses.create import create_loss
from in21k.training.tracker import Tracker

torch.set_num_threads(1)
tree = small_tree()

with join_ranks("cpu") as ranks:
    settings = TrainSettings(model="test_resnet", image_size=16, batch_size=8, epochs=1, ema=0.5, amp="off")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6)
    trainer = Trainer(model, create_loss(settings, tree), settings, ranks)
    loader = MemoryLoader(*small_data(), 8, ranks.rank, ranks.world_size)
    trainer.plan(loader)
    trainer.train_epoch(loader, Tracker(ranks, [], None), lambda: None)
    assert trainer.ema is not None

    def apart() -> dict[str, float]:
        """How far the ranks are apart in their weights and in their buffers, those of the average included."""
        modules = {"model": trainer.model, "ema": trainer.ema.module}
        tensors = {
            f"{name}.{kind}": torch.cat([tensor.detach().flatten().double() for tensor in getattr(module, kind)()])
            for name, module in modules.items()
            for kind in ("parameters", "buffers")
        }
        gathered = {name: ranks.gather(tensor) for name, tensor in tensors.items()}
        return {name: float((first - second).abs().max()) for name, (first, second) in gathered.items()}

    stages = [apart()]
    before = [buffer.clone() for buffer in trainer.model.buffers()]
    trainer.share_buffers()
    stages.append(apart())
    kept = all(torch.equal(old, new) for old, new in zip(before, trainer.model.buffers(), strict=True))
    if ranks.is_first:
        Path(sys.argv[1]).write_text(json.dumps({"stages": stages, "first_kept_its_own": kept}))
