"""What test_distributed starts with torchrun: trains the small network on this rank's share of the small data.

Arguments: the run folder, the batch size per rank, and the seed that the last rank takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from conftest import MemoryLoader, small_data, small_model, small_tree

from in21k.training import TrainSettings, create_loss, join_ranks, train

folder, batch_size, last_seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
tree, (images, labels) = small_tree(), small_data()


class Validation(MemoryLoader):
    """Everything on the first rank, and nothing but an empty batch on the others."""

    def __iter__(self):
        taken = slice(31 if self.rank == 0 else 0)
        yield self.images[taken], self.labels[taken]


with join_ranks("cpu") as ranks:
    seed = last_seed if ranks.rank == ranks.world_size - 1 else 0
    settings = TrainSettings(model="resnet18", image_size=16, batch_size=batch_size, epochs=2, lr=0.02, seed=seed)
    try:
        train(
            model=small_model(dropout=0),  # the draws of dropout differ between ranks, as they should
            loss=create_loss(settings, tree),
            loader=MemoryLoader(images, labels, batch_size, ranks.rank, ranks.world_size),
            val_loader=Validation(images, labels, 31, ranks.rank),
            tree=tree,
            settings=settings,
            folder=folder,
            ranks=ranks,
        )
    except ValueError as error:
        sys.exit(f"rank {ranks.rank} stops: {error}")
