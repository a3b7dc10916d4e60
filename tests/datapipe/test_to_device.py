"""Handing batches over one ahead, as far as a CPU, which has one stream, can show it; `test_gpu.py` has the rest."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from in21k.datapipe.loader import LoaderBatch
from in21k.datapipe.to_device import one_ahead

CPU = torch.device("cpu")


def made(log: list[str], fail_at: int | None = None) -> Generator[LoaderBatch]:
    """Make four batches, numbered by their labels."""
    try:
        for number in range(4):
            if number == fail_at:
                raise OSError("gone")
            log.append(f"made {number}")
            yield LoaderBatch(torch.zeros(1, 3, 2, 2), torch.tensor([number]), [])
    finally:
        log.append("closed")


def test_each_batch_comes_after_the_next_one_was_begun() -> None:
    log = list[str]()
    for batch in one_ahead(made(log), CPU):
        log.append(f"got {batch.labels.item()}")
    assert log == ["made 0", "made 1", "got 0", "made 2", "got 1", "made 3", "got 2", "closed", "got 3"]


@pytest.mark.parametrize("fail_at", range(4))
def test_an_error_comes_after_the_batches_before_it(fail_at: int) -> None:
    actual = list[int]()
    with pytest.raises(OSError, match="gone"):
        actual.extend(int(batch.labels) for batch in one_ahead(made([], fail_at), CPU))
    assert actual == list(range(fail_at))


def test_closing_closes_what_makes_the_batches() -> None:
    log = list[str]()
    batches = one_ahead(made(log), CPU)
    next(batches)
    batches.close()
    assert log[-1] == "closed"


def test_nothing_comes_of_nothing() -> None:
    batches = made([])
    batches.close()
    assert list(one_ahead(batches, CPU)) == []
