"""What people load images with, one function a way: endless batches of the same work, for `benchmarks.loaders`.

Each draws a random resized crop of 224 pixels and a flip, in `THREADS` threads or processes, and gives batches of
`BATCH` as float32 0..1 (N x 3 x H x W) or as uint8 (in the layout that costs it least). The formats that a peer has of
its own are made when it is first asked for a batch. Torch's peers decode and crop tensors, which is nearly twice as
fast as PIL's images; timm does as it does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, decode_jpeg
from torchvision.transforms import v2

from in21k.datapipe import Loader, create_loader
from in21k.datapipe.augment import draws
from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet
from in21k.shards.dataset import ShardSplit
from in21k.shards.index import index_path
from in21k.shards.reader import SampleReader

BATCH, SIZE, THREADS, BUFFERED = 256, 224, 2, 1024  # BUFFERED: samples that streams are shuffled among
AREA, RATIO = draws.CROP_SCALE, draws.CROP_RATIO

Batches = Iterator[Any]


@dataclass(frozen=True)
class Work:
    """What is asked of every peer.

    shards:   the images. Their names are absolute, so that what others make of them is found.
    own:      a folder for what a peer makes of them first.
    as_uint8: what comes out; otherwise float32.
    """

    shards: ShardSet
    own: Path
    as_uint8: bool

    @property
    def paths(self) -> list[str]:
        """The shards."""
        return [str(self.shards.path / name) for name in self.shards.shard_names("train")]

    @property
    def split(self) -> ShardSplit:
        """Where the samples lie."""
        return self.shards.split("train")

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Return the path of that name in `own`, made by `make` where it is not there."""
        path = self.own / name
        if not path.exists():
            unfinished = self.own / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)
        return path


# Ours


def in21k(work: Work, backend: str) -> Batches:
    """Yield a backend's batches, epoch after epoch."""
    options: dict[str, Any] = {"dtype": torch.uint8, "normalize": None, "channels_last": True} if work.as_uint8 else {}
    loader: Loader = create_loader(
        work.shards,
        split="train",
        backend=backend,
        batch_size=BATCH,
        image_size=SIZE,
        augment="inception",
        workers=THREADS,
        **options,
    )
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def in21k_unchecked(work: Work, backend: str) -> Batches:
    """Yield them without the cost of checksums: every sum comes out as 0, and so it is written."""
    split = work.split
    split.checksums[:] = 0
    none = SimpleNamespace(sha256=lambda _: SimpleNamespace(digest=lambda: bytes(32)))
    with patch("in21k.shards.reader.hashlib", none), patch.object(ShardSet, "split", lambda *_: split):
        yield from in21k(work, backend)


# DALI


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


def dali_reader(work: Work) -> Batches:
    """Read shards by DALI's own reader and our indexes, draw by its own operators."""
    from nvidia.dali import fn, types

    def define() -> Any:
        jpegs, _ = fn.readers.webdataset(
            paths=work.paths,
            index_paths=[str(index_path(Path(path))) for path in work.paths],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=BUFFERED,
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=types.RGB, random_area=list(AREA), random_aspect_ratio=list(RATIO)
        )
        return finished(fn, types, images, fn.random.coin_flip(), work.as_uint8)

    return run_pipeline(define)


def dali_fed(work: Work) -> Batches:
    """Feed the samples and draws of our plan to DALI by hand."""
    from nvidia.dali import fn, types

    split = work.split
    reader = SampleReader(split)

    def feed() -> Iterator[tuple[Any, ...]]:
        for epoch in count():
            for batch in EpochPlan(shard_sizes=split.shard_sizes, batch_size=BATCH, epoch=epoch).batches(0):
                numbers = draws.philox_uniforms(0, epoch, batch.first, BATCH)
                jpegs = [reader.image(int(position)) for position in batch.positions]
                sizes = np.array([simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs])
                windows = draws.crop_windows(numbers[:, draws.CROP], sizes[:, 0], sizes[:, 1]).astype(np.int32)
                flips = draws.flips(numbers[:, draws.FLIP]).astype(np.int32)
                data = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
                yield data, windows[:, :2].copy(), windows[:, 2:].copy(), flips

    fed = feed()

    def define() -> Any:
        jpegs, start, shape, flip = fn.external_source(source=lambda: next(fed), num_outputs=4, batch=True)
        images = fn.decoders.image_slice(
            jpegs, start=start, shape=shape, axis_names="HW", device="cpu", output_type=types.RGB
        )
        return finished(fn, types, images, flip, work.as_uint8)

    return run_pipeline(define)


# torch


def transform_of(work: Work) -> Callable[[Any], torch.Tensor]:
    """Return torchvision's transforms, of a uint8 tensor."""
    steps = [v2.RandomResizedCrop(SIZE, AREA, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose(steps if work.as_uint8 else [*steps, v2.ToDtype(torch.float32, scale=True)])


def decoded(jpeg: bytes) -> torch.Tensor:
    """Decode a JPEG to 3 x H x W."""
    return decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)


def class_folders(work: Work) -> Path:
    """Write the images of the shards as files into class folders."""
    from in21k.shards.dataset import read_manifest

    def write(folder: Path) -> None:
        split = work.split
        reader = SampleReader(split)
        keys = read_manifest(work.shards, ["key"])["key"].to_pylist()
        for position in range(len(split)):
            path = folder / f"{split.labels[position]:05}" / f"{keys[split.manifest_rows[position]]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(reader.image(position))
        reader.close()

    return work.once("folders", write)


def repeated(loader: Any) -> Batches:
    """Yield epoch after epoch."""
    while True:
        yield from loader


def image_folder(work: Work) -> Batches:
    """Read files of class folders by torch's DataLoader."""
    read = partial(decode_image, mode=ImageReadMode.RGB)
    data = ImageFolder(class_folders(work), transform=transform_of(work), loader=read)
    options: dict[str, Any] = {"num_workers": THREADS, "persistent_workers": True}
    return repeated(DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, **options))


def web_dataset(work: Work) -> Batches:
    """Read shards by the webdataset library."""
    import webdataset as wds

    transform = transform_of(work)

    def example(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
        return transform(decoded(sample["jpg"])), int(sample["cls"])

    data = wds.WebDataset(work.paths, shardshuffle=len(work.paths)).shuffle(BUFFERED).map(example).repeat()
    return iter(wds.WebLoader(data, batch_size=BATCH, num_workers=THREADS))


def timm_wds(work: Work) -> Batches:
    """Read shards by timm's `wds/` reader and its loader."""
    from timm.data import create_dataset
    from timm.data import create_loader as create_timm_loader

    data = create_dataset("wds/in21k", str(work.shards.path), split="train", is_training=True, batch_size=BATCH)
    options: dict[str, Any] = {"scale": AREA, "ratio": RATIO, "color_jitter": None, "interpolation": "bilinear"}
    options |= {"mean": (0.0,) * 3, "std": (1.0,) * 3, "num_workers": THREADS, "device": torch.device("cpu")}
    loader = create_timm_loader(data, SIZE, BATCH, is_training=True, use_prefetcher=work.as_uint8, **options)
    # Its prefetcher takes uint8 from the workers, to normalise on a GPU.
    return repeated(loader.loader if work.as_uint8 else loader)


# Others


def spdl(work: Work) -> Batches:
    """Decode and crop in the threads of SPDL's pipeline (its own decoder wants FFmpeg's libraries)."""
    from spdl.pipeline import PipelineBuilder

    split, transform = work.split, transform_of(work)
    reader = SampleReader(split)

    def batch_of(positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([transform(decoded(reader.image(position))) for position in positions])
        return images, torch.from_numpy(split.labels[positions])

    def positions() -> Iterator[int]:
        while True:
            yield from torch.randperm(len(split)).tolist()

    pipeline = PipelineBuilder().add_source(positions()).aggregate(BATCH).pipe(batch_of, concurrency=THREADS)
    with (running := pipeline.add_sink(2).build(num_threads=THREADS)).auto_stop():
        yield from running.get_iterator()


def litdata(work: Work) -> Batches:
    """Read litdata's own chunks by its streaming loader."""
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    def write(folder: Path) -> None:
        reader, labels = SampleReader(work.split), work.split.labels

        def sample(position: int) -> dict[str, Any]:
            return {"jpeg": reader.image(position), "label": int(labels[position])}

        positions = list(range(len(labels)))
        optimize(sample, positions, str(folder), chunk_bytes="16MB", num_workers=1, start_method="fork", verbose=False)

    transform = transform_of(work)

    def example(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return transform(decoded(sample["jpeg"])), sample["label"]

    data = StreamingDataset(str(work.once("litdata", write)), transform=example, shuffle=True, drop_last=True)
    return repeated(StreamingDataLoader(data, batch_size=BATCH, num_workers=THREADS, persistent_workers=True))


def ffcv(work: Work) -> Batches:
    """Read FFCV's own file, whose JPEGs are encoded anew, by its compiled loader."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    def write(file: Path) -> None:
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}
        DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(ImageFolder(class_folders(work)))

    steps = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), AREA, RATIO), RandomHorizontalFlip()]
    if not work.as_uint8:
        steps.append(NormalizeImage(np.zeros(3), np.full(3, 255.0), np.float32))
    pipelines = {"image": [*steps, ToTensor(), ToTorchImage()]}
    file = str(work.once("ffcv", write))
    return repeated(Loader(file, BATCH, num_workers=THREADS, order=OrderOption.RANDOM, pipelines=pipelines))


BASE = "DALI readers.webdataset, by hand"
PEERS: dict[str, Callable[[Work], Batches]] = {
    BASE: dali_reader,
    "DALI external_source, by hand": dali_fed,
    "torch DataLoader, class folders": image_folder,
    "webdataset": web_dataset,
    "timm wds/": timm_wds,
    "SPDL": spdl,
    "litdata": litdata,
    "FFCV": ffcv,
    **{f"in21k {name}": partial(in21k, backend=name) for name in ("dali_cpu", "opencv", "torch")},
    "in21k opencv, sums unchecked": partial(in21k_unchecked, backend="opencv"),
}
