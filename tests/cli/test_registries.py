"""Help texts name everything that is registered."""

from __future__ import annotations

import pytest

from in21k.cli.registries import loss_names
from in21k.datapipe.catalog import INDEXED
from in21k.training.losses.registry import LOSSES

from .conftest import run


def test_the_names_read_from_the_source_are_those_of_the_losses() -> None:
    assert loss_names().split(", ") == list(LOSSES)


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_the_help_of_a_training_names_every_backend_and_loss(command: str) -> None:
    text = " ".join(run(command, "--help").stdout.split())
    assert [name for name in (*INDEXED, *LOSSES) if name not in text] == []
