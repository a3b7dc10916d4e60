"""Our loaders beside what people write by hand, on the same shards and cores: `python -m benchmarks.loaders [SHARDS]`.

Random crops and flips to 224 pixels, batches of 256, two threads or processes, out as float32 0..1 (N x 3 x H x W) and
as uint8 (N x H x W x 3). The ways go in turns for some rounds; each lets four batches pass before its time is taken, so
that what it held ready does not count. Ratios are medians over the rounds, to DALI's own reader of WebDataset shards.
Without SHARDS, those of the full-size images of fall11-mini stored at 224 are made.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from in21k.datapipe import create_loader, draws
from in21k.datapipe.plan import EpochPlan
from in21k.preprocess.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.select import SelectSettings
from in21k.preprocess.sources import open_raw_tar
from in21k.shards import ShardSet, open_dataset
from in21k.shards.dataset import PreparedSet
from in21k.shards.index import index_path
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.reader import SampleReader

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11-mini.tar"
BATCH, SIZE, THREADS, ROUNDS, SECONDS, PASSED = 256, 224, 2, 7, 2.0, 4

Batches = Iterator[Any]


def make_shards(work: Path) -> ShardSet:
    """Prepare and shard every image of the archive."""
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    prepared: PreparedSet = prepare(open_raw_tar(ARCHIVE), work / "prepared", select=select, image=ImageSettings())
    return pack(prepared, work / "shards", ShardSettings())


def ours(shards: ShardSet, backend: str, as_uint8: bool) -> Batches:
    """Yield a backend's batches, epoch after epoch."""
    options: dict[str, Any] = {"dtype": torch.uint8, "normalize": None, "channels_last": True} if as_uint8 else {}
    loader = create_loader(
        shards,
        split="train",
        backend=backend,
        batch_size=BATCH,
        image_size=SIZE,
        augment="inception",
        workers=THREADS,
        **options,
    )
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def run_pipeline(define: Any) -> Batches:
    """Yield the outputs of a hand-written DALI pipeline."""
    from nvidia.dali import pipeline_def

    options = {"batch_size": BATCH, "num_threads": THREADS, "device_id": None, "prefetch_queue_depth": 2}
    pipeline = pipeline_def(**options)(define)()
    pipeline.build()
    while True:
        yield pipeline.run()


def finished(fn: Any, types: Any, images: Any, flip: Any, as_uint8: bool) -> Any:
    """Return the last steps of both hand-written pipelines."""
    images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR)
    if as_uint8:
        return fn.flip(images, horizontal=flip)
    return fn.crop_mirror_normalize(
        images, dtype=types.FLOAT, output_layout="CHW", mean=[0.0] * 3, std=[255.0] * 3, mirror=flip
    )


def dali_reader(shards: ShardSet, as_uint8: bool) -> Batches:
    """Read shards by DALI's own reader and our indexes, draw by its own operators."""
    from nvidia.dali import fn, types

    paths = [shards.path / name for name in shards.shard_names("train")]

    def define() -> Any:
        jpegs, _ = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(index_path(path)) for path in paths],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=1024,
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        return finished(fn, types, images, fn.random.coin_flip(), as_uint8)

    return run_pipeline(define)


def dali_fed(shards: ShardSet, as_uint8: bool) -> Batches:
    """Feed the samples and draws of our plan to DALI by hand, without checking sums."""
    from nvidia.dali import fn, types

    split = shards.split("train")
    reader = SampleReader(split)

    def feed() -> Iterator[tuple[Any, ...]]:
        epoch = 0
        while True:
            for batch in EpochPlan(shard_sizes=split.shard_sizes, batch_size=BATCH, epoch=epoch).batches(0):
                numbers = draws.uniforms(0, epoch, batch.first, BATCH)
                jpegs = [reader.image(int(position)) for position in batch.positions]
                sizes = np.array([simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs])
                windows = draws.crop_windows(numbers[:, draws.CROP], sizes[:, 0], sizes[:, 1]).astype(np.int32)
                flips = draws.flips(numbers[:, draws.FLIP]).astype(np.int32)
                data = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
                yield data, windows[:, :2].copy(), windows[:, 2:].copy(), flips
            epoch += 1

    fed = feed()

    def define() -> Any:
        jpegs, start, shape, flip = fn.external_source(source=lambda: next(fed), num_outputs=4, batch=True)
        images = fn.decoders.image_slice(
            jpegs, start=start, shape=shape, axis_names="HW", device="cpu", output_type=types.RGB
        )
        return finished(fn, types, images, flip, as_uint8)

    return run_pipeline(define)


def web_dataset(shards: ShardSet, as_uint8: bool) -> Batches:
    """Read shards by the webdataset library, with torchvision's transforms, in worker processes."""
    import webdataset as wds
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    transform = v2.Compose(steps if as_uint8 else [*steps, v2.ToDtype(torch.float32, scale=True)])

    def example(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
        return transform(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")), int(sample["cls"])

    paths = [str(shards.path / name) for name in shards.shard_names("train")]
    data = wds.WebDataset(paths * THREADS, shardshuffle=len(paths) * THREADS, empty_check=False).shuffle(1024)
    loader = wds.WebLoader(data.map(example).repeat(), batch_size=BATCH, num_workers=THREADS)
    yield from loader


def rate(batches: Batches) -> float:
    """Return images per second over some seconds."""
    for _ in range(PASSED):
        next(batches)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - begun)


def compare(shards: ShardSet, as_uint8: bool) -> None:
    """Let every way run in turns, and print its median rate and ratio."""
    ways = {
        "DALI readers.webdataset, by hand": dali_reader,
        "DALI external_source, by hand": dali_fed,
        "webdataset + torchvision": web_dataset,
        **{f"in21k {name}": partial(ours, backend=name) for name in ("dali_cpu", "opencv", "torch")},
    }
    running = {name: way(shards, as_uint8=as_uint8) for name, way in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, batches in running.items():
            rates[name].append(rate(batches))
    first = next(iter(rates.values()))
    print("uint8, channels last" if as_uint8 else "float32 0..1")
    for name, measured in rates.items():
        ratio = statistics.median(one / base for one, base in zip(measured, first, strict=True))
        print(f"  {name:34} {statistics.median(measured):6.0f} images/s  best {max(measured):6.0f}  ratio {ratio:.2f}")


def main(shards: Path | None = None) -> None:
    """Compare on given shards, or on those of the archive."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        dataset = open_dataset(shards) if shards else make_shards(Path(work))
        for as_uint8 in (False, True):
            compare(dataset, as_uint8)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
