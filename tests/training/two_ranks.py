"""What test_distributed starts with torchrun: trains the small network on this rank's share of the small data.

Arguments: the run folder, the batch size per rank, the seed that the last rank takes, the batch (0..) at whose reading
the last rank is killed (-1: none) when it was started for the first or second time. OWN_DISKS in the environment: each
rank has a folder of its own, as on nodes that share no disk. PATIENCE: the setting, of a run that learns nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from conftest import MemoryLoader, small_data, small_model, small_tree

from in21k.training import TrainSettings, train_model
from in21k.training.distributed import join_ranks

folder, (batch_size, last_seed, killed_at) = Path(sys.argv[1]), map(int, sys.argv[2:])
torch.set_num_threads(1)
tree, (images, labels) = small_tree(), small_data()


class Training(MemoryLoader):
    """Kills its rank where it is asked to, twice."""

    def __iter__(self):
        restarts, last = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), self.rank == self.world_size - 1
        for batch in super().__iter__():
            number = self.epoch * len(self) + self.consumed // (self.batch_size * self.world_size) - 1
            if last and restarts < 2 and number == killed_at + restarts:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


class Validation(MemoryLoader):
    """Everything on the first rank, and nothing but an empty batch on the others."""

    def __iter__(self):
        taken = slice(31 if self.rank == 0 else 0)
        yield self.images[taken], self.labels[taken]


with join_ranks("cpu") as ranks:
    if "OWN_DISKS" in os.environ:
        folder = folder / f"disk{ranks.rank}" / "run"
        folder.parent.mkdir(parents=True, exist_ok=True)
    seed = last_seed if ranks.rank == ranks.world_size - 1 else 0
    patience = int(os.environ["PATIENCE"]) if "PATIENCE" in os.environ else None
    settings = TrainSettings(
        model="resnet18",
        image_size=16,
        batch_size=batch_size,
        epochs=2 if patience is None else 6,
        lr=0.02 if patience is None else 1e-30,
        patience=patience,
        seed=seed,
        ema=0.9,
        save_every_steps=1 if killed_at >= 0 else None,
        trackers=[],
    )
    try:
        train_model(
            # The draws of dropout differ between ranks, as they should: only a curve of two ranks has them.
            model=small_model(dropout=0.1 if killed_at != -1 else 0),
            loader=Training(images, labels, batch_size, ranks.rank, ranks.world_size),
            val_loader=Validation(images, labels, 31, ranks.rank),
            tree=tree,
            settings=settings,
            folder=folder,
            ranks=ranks,
        )
    except ValueError as error:
        sys.exit(f"rank {ranks.rank} stops: {error}")
