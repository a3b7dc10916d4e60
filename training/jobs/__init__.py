"""Whole jobs from paths and settings to results: they join shards, loader, network and trainer.

They print nothing: progress goes to callbacks, warnings to the log, and results are returned.
"""

from .finetune_data import Packing
from .finetune_job import finetune, pack_images, plan_finetuning
from .train_job import plan_training, train

__all__ = ["Packing", "finetune", "pack_images", "plan_finetuning", "plan_training", "train"]
