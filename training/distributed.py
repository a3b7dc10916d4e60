"""The ranks of a run: who am I, on which device, and the few words that ranks exchange."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..shards.files.atomic import describe_differences

SHARED_BYTES = 1 << 28  # at a time, so that a checkpoint needs little of a GPU's memory


@dataclass(frozen=True)
class Ranks:
    """One rank among `world_size` and its device. Made by `join_ranks`; `Ranks()` is a single rank on the CPU.

    Every method that exchanges something has to be called by all ranks.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, all of one shape and dtype, on this rank's device."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor in rank order, on the CPU; all of one shape and dtype."""
        if self.world_size == 1:
            return [tensor.cpu()]
        mine = tensor.to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(gathered, mine)
        return [part.cpu() for part in gathered]

    def gather_rows(self, *tensors: Tensor) -> list[Tensor]:
        """Return for each tensor the rows of all ranks, in rank order, on the CPU.

        A rank's tensors have equally many rows, as many as it likes, be it none.
        """
        if self.world_size == 1:
            return [tensor.cpu() for tensor in tensors]
        num_rows = len(tensors[0])
        sizes = [int(size) for size in self.gather(torch.tensor(num_rows))]
        joined: list[Tensor] = []
        for tensor in tensors:
            padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
            padded[:num_rows] = tensor
            joined.append(torch.cat([part[:size] for part, size in zip(self.gather(padded), sizes, strict=True)]))
        return joined

    def gather_json(self, value: object) -> list[Any]:
        """Return every rank's JSON value in rank order (torch's own object collectives pickle; nothing here does)."""
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.gather(torch.tensor(len(mine)))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        return [json.loads(bytes(part[:size].tolist())) for part, size in zip(self.gather(padded), sizes, strict=True)]

    def from_first(self, compute: Callable[[], Any]) -> Any:
        """Return on every rank what rank 0 computes, a JSON value; the others do not call `compute`.

        Where rank 0 raises OSError or ValueError, every rank raises ValueError with its message.
        """
        value, problem = None, ""
        if self.is_first:
            try:
                value = compute()
            except (OSError, ValueError) as error:
                problem = str(error)
        value, problem = self.gather_json([value, problem])[0]
        if problem:
            raise ValueError(problem)
        return value

    def share_bytes(self, content: bytes | None) -> bytes:
        """Return rank 0's bytes on every rank, whatever the others give."""
        if self.world_size == 1:
            assert content is not None
            return content
        size = self.gather_json(len(content) if content is not None else 0)[0]
        shared = bytearray(size)
        for start in range(0, size, SHARED_BYTES):
            mine = torch.empty(min(SHARED_BYTES, size - start), dtype=torch.uint8)
            if content is not None and self.is_first:
                mine.copy_(torch.frombuffer(bytearray(content[start : start + SHARED_BYTES]), dtype=torch.uint8))
            mine = mine.to(self.device)
            dist.broadcast(mine, src=0)
            shared[start : start + len(mine)] = mine.cpu().numpy().tobytes()
        return bytes(shared)

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError on all ranks where one holds other facts (JSON values) than rank 0, and say which."""
        first, *others = self.gather_json(dict(facts))
        for rank, other in enumerate(others, start=1):
            differences = describe_differences(first, other)
            if differences:
                raise ValueError(
                    f"rank {rank} trains something else than rank 0 ({'; '.join(differences)}); start all alike"
                )

    def copy_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: each has its own running statistics after a step, one set is saved."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def is_first_rank() -> bool:
    """Tell whether this process is rank 0, or the only one, also before and after `join_ranks`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_ranks(device: str | None = None) -> Generator[Ranks]:
    """Join the ranks that torchrun started (by its environment), or be the only one; leave them when the block ends.

    device: `cuda`, `cpu`, or None: the GPU where there is one. Under torchrun each rank of a machine takes its own GPU
    (NCCL); on CPUs the ranks talk through gloo.

    Raises ValueError for a GPU where there is none, or not one for each rank.
    """
    rank, world_size, local_rank = (int(os.environ.get(key, d)) for key, d in _ENVIRONMENT.items())
    own = _device(device, local_rank)
    if "RANK" not in os.environ:
        yield Ranks(device=own)
        return
    public = cast(Any, dist)  # of which type checkers do not see all
    store, _, _ = next(public.rendezvous("env://", rank, world_size))
    # torchrun's store still holds the addresses of the ranks before a restart, where nobody listens any more.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {world_size}"
    options: dict[str, Any] = {
        "store": public.PrefixStore(attempt, store),
        "rank": rank,
        "world_size": world_size,
    }
    if own.type == "cuda":
        torch.cuda.set_device(own)
        dist.init_process_group("nccl", device_id=own, **options)
    else:
        dist.init_process_group("gloo", **options)
    try:
        yield Ranks(rank, world_size, own)
    finally:
        dist.destroy_process_group()


def lone_device(device: str | None = None) -> torch.device:
    """Return the device of a process that works alone; `device` as for `join_ranks`.

    Raises ValueError for a GPU where there is none, and under torchrun with several ranks: each would do all the work.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        raise ValueError(f"got {world_size} ranks, and this is the work of one process; start it without torchrun")
    return _device(device, 0)


_ENVIRONMENT = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # what torchrun sets


def _device(device: str | None, local_rank: int) -> torch.device:
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device {device!r}: wanted cuda or cpu")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device is None and not num_gpus):
        return torch.device("cpu")
    if not num_gpus:
        raise ValueError("a GPU was asked for and torch sees none; give --device cpu, or see `in21k doctor`")
    if local_rank >= num_gpus:
        raise ValueError(f"{local_rank + 1} or more ranks on a machine with {num_gpus} GPUs; start one rank per GPU")
    return torch.device("cuda", local_rank)
