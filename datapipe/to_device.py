"""Prefetch to a GPU: batches are copied and normalised on their own CUDA stream, one ahead of the consumer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from .batch import LoaderBatch


def one_ahead(batches: Generator[LoaderBatch], device: torch.device) -> Generator[LoaderBatch]:
    """Yield each batch of a generator that works on `device`, once the generator has started the next batch.

    The generator's work runs on its own stream, beside the consumer's work on the previous batch. The consumer's stream
    waits for its batch by an event; the host does not wait. An exception of the generator is raised after the last
    complete batch.
    """
    module: Any = torch.get_device_module(device)
    own = module.Stream(device)
    try:
        with module.stream(own):
            coming = next(batches, None)
        while coming:
            batch, error = coming, None
            consumers = module.current_stream(device)
            consumers.wait_stream(own)  # it has no work beyond this batch yet
            if device.type == "cuda":
                for tensor in (batch.images, batch.labels):
                    tensor.record_stream(consumers)  # or its memory could be reused while the consumer reads it
            try:
                with module.stream(own):
                    coming = next(batches, None)
            except Exception as met:  # whatever a decoder or a file system raises
                error = met
            yield batch
            if error:
                raise error
    finally:
        batches.close()
