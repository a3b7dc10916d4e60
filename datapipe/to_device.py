"""Batches on their way to a GPU: copied there, and normalised, on a stream of their own, one ahead of the consumer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from .batch import LoaderBatch


def one_ahead(batches: Generator[LoaderBatch], device: torch.device) -> Generator[LoaderBatch]:
    """Yield each batch of a generator that works on `device` after it was told to begin the next one.

    What the generator tells the device runs on a stream of its own, beside the consumer's work on the batch before.
    The consumer's stream waits for its batch by an event; the host waits for neither. What the generator raises comes
    after the batches that were whole.
    """
    module: Any = torch.get_device_module(device)
    own = module.Stream(device)
    try:
        with module.stream(own):
            coming = next(batches, None)
        while coming:
            handed, error = coming, None
            consumers = module.current_stream(device)
            consumers.wait_stream(own)  # which has been told no more than this batch yet
            if device.type == "cuda":
                for tensor in (handed.images, handed.labels):
                    tensor.record_stream(consumers)  # or its memory would be used again while the consumer reads it
            try:
                with module.stream(own):
                    coming = next(batches, None)
            except Exception as met:  # whatever a decoder or a file system throws
                error = met
            yield handed
            if error:
                raise error
    finally:
        batches.close()
