"""What the system reports: memory and CPU time of processes, cached parts of files, shared memory, load."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from ..shards.dataset import ShardSplit
from ..shards.files.parallel import default_workers

BUSY = 0.5  # guessed: with more load than this on each core, threads are kept waiting
MAX_RESIDENT = 0.1  # guessed: with more of a shard than this still in memory, the cache is not cold
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SHARED_MEMORY = "/dev/shm"


def descendants() -> list[int]:
    """Return the processes that this one started, and those that they did."""
    processes, waiting = list[int](), [os.getpid()]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = [int(word) for word in task.read_text().split()]
            except OSError:
                continue  # it ended meanwhile
            processes += children
            waiting += children
    return processes


def cpu_seconds() -> float:
    """Return the processor time of this process and its children so far, those that ended included."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for process in descendants():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) * TICK_S  # utime and stime: the state after the name is field 0
    return total


def resident_bytes() -> int:
    """Return the memory of this process that is not swapped out, the libraries in it included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def private_bytes(process: int) -> int:
    """Return the memory that a process does not share: forked workers share nearly all of their parent's."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def shared_memory() -> tuple[int, int] | None:
    """Return the bytes of /dev/shm, in all and free; None if the system has no /dev/shm."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return None
    return usage.total, usage.free


def describe_shared_memory() -> str:
    """Return the size of /dev/shm, in words."""
    sizes = shared_memory()
    return (
        f"{SHARED_MEMORY} has {sizes[0] / 1e6:,.0f} MB, {sizes[1] / 1e6:,.0f} free" if sizes else f"no {SHARED_MEMORY}"
    )


def load() -> dict[str, float]:
    """Return torch's OpenMP threads, the machine's load (of a minute), and the cores that this process may use."""
    return {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "cores": default_workers()}


def describe_load(threads: float, load: float, cores: float) -> str:
    """Return what `load()` tells, in words, with the way out where other work is on the cores."""
    summary = f"{threads:.0f} OpenMP threads, load {load:.1f} on {cores:.0f} cores"
    if threads == 1 or load <= BUSY * cores:
        return summary
    return f"{summary}: threads that wait for one another are many times slower than one; try OMP_NUM_THREADS=1"


def drop_cache(split: ShardSplit) -> str:
    """Have the page cache forget the shards of a split; return why that cannot be, or nothing where it is done."""
    if not hasattr(os, "posix_fadvise"):
        return "this system cannot be asked to forget files"
    for name in split.shard_names:
        descriptor = os.open(split.folder / name, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = resident_part(split.folder / split.shard_names[0])
    return f"{100 * left:.0f} % of a shard stay in memory" if left > MAX_RESIDENT else ""


def resident_part(path: Path) -> float:
    """Return which part of a file (0..1) lies in the page cache; of another's file Linux says all of it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.frombuffer(mapped, np.uint8)
        states = np.zeros(-(-len(pages) // PAGE_BYTES), np.uint8)
        address, size, out = (ctypes.c_void_p(pages.ctypes.data), len(pages), ctypes.c_void_p(states.ctypes.data))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), out)
        del pages  # a map with a view of it cannot be closed
    return 1.0 if failed else float((states & 1).mean())


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was told; a CPU has already."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def gpu_free(device: str) -> int | None:
    """Return the bytes that are free on the GPU; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.empty(1, device=device)  # so that what CUDA itself takes counts before, not as a loader's
    return torch.cuda.mem_get_info(device)[0]
