"""What only a GPU can show of loaders (`pytest -m gpu`)."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in21k.datapipe import Loader
from in21k.datapipe.bench.rounds import BackendRunner, BenchSettings, Trial
from in21k.datapipe.catalog import AUGMENTATIONS
from in21k.shards import ShardSet

from .conftest import BACKENDS, SIZE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
HAS_DALI = "dali_cpu" in BACKENDS and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="DALI is not installed")
ON_GPU = [*BACKENDS, *(["dali_gpu"] if HAS_DALI else [])]

MakeLoader = Callable[..., Loader]
MakeOnGpu = Callable[..., Loader]

# Grey levels that dali_gpu is from dali_cpu: on average over all images, and over the image that differs most. It
# decodes by another inverse transform and resizes in another order; RandAugment's thresholds make more of that.
TOLERANCES = {"none": (1, 2), "miil": (2, 8), "inception": (1, 2), "inception-ra": (2, 8)}


@pytest.fixture
def make_on_gpu(make: MakeLoader) -> MakeOnGpu:
    """Make loaders whose batches come out on the GPU."""
    return lambda *arguments, **settings: make(*arguments, device="cuda", **settings)


@pytest.fixture(params=ON_GPU)
def gpu_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def images_of(loader: Loader) -> Tensor:
    return torch.cat([images.cpu() for images, _ in loader])


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same images (0..1), not others, nor overwritten ones: GPUs may decode one by either of two units."""
    assert actual.shape == expected.shape
    assert (actual.cpu() - expected.cpu()).abs().flatten(1).mean(1).max() < 5 / 255


# dali_gpu


@needs_dali
@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("image_size", [20, 32, 48])
def test_dali_gpu_agrees_with_dali_cpu(make: MakeLoader, make_on_gpu: MakeOnGpu, augment: str, image_size: int) -> None:
    settings: dict[str, Any] = {"augment": augment, "image_size": image_size, "normalize": None, "seed": 1}
    expected, actual = make("dali_cpu", **settings), make_on_gpu("dali_gpu", **settings)
    assert [labels.tolist() for _, labels in actual] == [labels.tolist() for _, labels in expected]
    difference = (images_of(actual) - images_of(expected)).abs().flatten(1).mean(1)
    mean, worst = TOLERANCES[augment]
    assert difference.mean() <= mean
    assert difference.max() <= worst


@needs_dali
@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_dali_gpu_makes_the_requested_dtype_and_layout(
    make_on_gpu: MakeOnGpu, dtype: torch.dtype, channels_last: bool, augment: str
) -> None:
    settings: dict[str, Any] = {"augment": augment, "normalize": None, "batch_size": 16}
    wanted = images_of(make_on_gpu("dali_gpu", **settings))
    for images, labels in make_on_gpu("dali_gpu", dtype=dtype, channels_last=channels_last, **settings):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert (images.dtype, images.device.type, labels.device.type) == (dtype, "cuda", "cuda")
        assert images.is_contiguous(memory_format=layout)
        part, wanted = wanted[: len(images)], wanted[len(images) :]
        # bfloat16 has 8 bits: values to 255 are half a level off
        torch.testing.assert_close(images.cpu().float(), part, rtol=0, atol=0.5 if dtype == torch.bfloat16 else 1e-3)


@needs_dali
@pytest.mark.parametrize("normalize", ["unit", "imagenet"])
def test_dali_gpu_normalizes_as_dali_cpu_does(make: MakeLoader, make_on_gpu: MakeOnGpu, normalize: str) -> None:
    expected = images_of(make("dali_cpu", "val", normalize=normalize))
    actual = images_of(make_on_gpu("dali_gpu", "val", normalize=normalize, dtype=torch.float16, channels_last=True))
    assert (actual.float() - expected).abs().mean() < 2 / 255 / 0.225


@needs_dali
@pytest.mark.parametrize("load", [0.0, 0.5, 1.0])
def test_any_share_of_the_hardware_decoder_gives_the_images(
    make: MakeLoader, make_on_gpu: MakeOnGpu, load: float
) -> None:
    settings: dict[str, Any] = {"augment": "inception", "normalize": None}
    actual = images_of(make_on_gpu("dali_gpu", hw_decoder_load=load, **settings))
    assert (actual - images_of(make("dali_cpu", **settings))).abs().mean() <= TOLERANCES["inception"][0]


@needs_dali
def test_the_centre_crop_on_the_gpu_is_that_of_the_cpu(make: MakeLoader, make_on_gpu: MakeOnGpu) -> None:
    settings: dict[str, Any] = {"image_size": 24, "crop_pct": 0.9, "normalize": None}
    actual = images_of(make_on_gpu("dali_gpu", "val", **settings))
    assert (actual - images_of(make("dali_cpu", "val", **settings))).abs().mean() <= TOLERANCES["none"][0]


@needs_dali
@pytest.mark.parametrize("kind", ["changed", "headless", "undecodable"])
def test_a_corrupt_sample_does_not_stop_the_gpus_pipeline(
    make: MakeLoader, make_on_gpu: MakeOnGpu, damage: Callable[..., Path], kind: str
) -> None:
    shards = damage({3: kind, 20: kind})
    expected, actual = make("dali_cpu", shards=shards), make_on_gpu("dali_gpu", shards=shards)
    assert [labels.tolist() for _, labels in actual] == [labels.tolist() for _, labels in expected]
    assert actual.num_bad == 2


# The hand-over, of every backend


def busy(cycles: int = 2 * 10**8) -> None:
    """Keep the current stream busy for about a tenth of a second."""
    torch.cuda._sleep(cycles)


@pytest.mark.parametrize("own_stream", [False, True], ids=["default stream", "a stream of its own"])
def test_a_batch_stays_what_it_was_while_the_consumers_stream_lags_behind(
    make_on_gpu: MakeOnGpu, gpu_backend: str, own_stream: bool
) -> None:
    """The host runs ahead: batches are read, and their memory given up, long before the GPU comes to reading them."""
    settings: dict[str, Any] = {"augment": "inception", "batch_size": 4}
    wanted = [(images.cpu(), labels.cpu()) for images, labels in make_on_gpu(gpu_backend, **settings)]
    loader = make_on_gpu(gpu_backend, **settings)
    stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
    actual = list[tuple[Tensor, Tensor]]()
    with torch.cuda.stream(stream):
        for images, labels in loader:
            busy()
            actual.append((images * 1, labels * 1))
            del images, labels
    stream.synchronize()
    assert len(actual) == len(wanted)
    for (images, labels), (expected, expected_labels) in zip(actual, wanted, strict=True):
        assert_same(images, expected)
        assert labels.tolist() == expected_labels.tolist()


def test_handing_over_does_not_wait_for_the_consumers_stream(make_on_gpu: MakeOnGpu, gpu_backend: str) -> None:
    loader = make_on_gpu(gpu_backend, batch_size=8)
    for _ in loader:  # finds all the memory that it needs, for which a GPU may wait
        pass
    batches = iter(loader)
    next(batches)
    busy(10**10)  # five seconds
    done = torch.cuda.Event()
    done.record()
    images, _ = next(batches)
    assert not done.query()
    torch.cuda.synchronize()
    assert images.is_cuda


def test_batches_are_the_consumers_own(make_on_gpu: MakeOnGpu, gpu_backend: str) -> None:
    batches = [(images, images.clone()) for images, _ in make_on_gpu(gpu_backend, augment="inception")]
    torch.cuda.synchronize()
    assert all(torch.equal(images, copied) for images, copied in batches)


def test_every_backend_hands_out_on_the_gpu_what_it_does_on_the_cpu(
    make: MakeLoader, make_on_gpu: MakeOnGpu, backend: str
) -> None:
    for settings in (
        {"normalize": "imagenet", "dtype": torch.float16, "channels_last": True},
        {"normalize": None, "dtype": torch.uint8},
        {"normalize": "unit", "crop_pct": 0.9, "image_size": 24},
    ):
        on_cpu, on_gpu = make(backend, "val", **settings), make_on_gpu(backend, "val", **settings)
        for (images, labels), (item, found_labels) in zip(on_cpu, on_gpu, strict=True):
            torch.testing.assert_close(item.cpu().float(), images.float(), rtol=0, atol=4e-3)
            assert (item.dtype, found_labels.tolist()) == (images.dtype, labels.tolist())
            layout = torch.channels_last if settings.get("channels_last") else torch.contiguous_format
            assert item.is_contiguous(memory_format=layout)


def test_the_ranks_of_a_validation_also_get_their_empty_batches(make_on_gpu: MakeOnGpu, gpu_backend: str) -> None:
    ranks = [list(make_on_gpu(gpu_backend, "val", batch_size=8, rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(labels) for _, labels in batches] for batches in ranks] == [[8], [7], [0]]
    assert ranks[2][0][0].shape == (0, 3, SIZE, SIZE)


def test_resuming_on_the_gpu_gives_the_uninterrupted_epoch(make_on_gpu: MakeOnGpu, gpu_backend: str) -> None:
    whole = images_of(make_on_gpu(gpu_backend, augment="inception"))
    loader = make_on_gpu(gpu_backend, augment="inception")
    list(itertools.islice(iter(loader), 2))
    other = make_on_gpu(gpu_backend, augment="inception")
    other.load_state_dict(loader.state_dict())
    assert_same(images_of(other), whole[16:])
    loader.close()
    assert_same(images_of(loader), whole[16:])


def test_fifty_epochs_leave_no_memory_of_the_gpu_behind(make_on_gpu: MakeOnGpu, gpu_backend: str) -> None:
    loader = make_on_gpu(gpu_backend, augment="inception", batch_size=16)
    epochs = 15 if gpu_backend == "torch" else 50  # it starts processes each time
    free = 0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = iter(loader)
        list(batches if epoch % 2 else itertools.islice(batches, 1))
        del batches
        if epoch == epochs // 3:
            gc.collect()
            torch.cuda.synchronize()
            free = torch.cuda.mem_get_info()[0]
    gc.collect()
    torch.cuda.synchronize()
    assert free - torch.cuda.mem_get_info()[0] < 64 * 2**20


def test_a_benchmark_tells_what_a_backend_holds_of_the_gpu(shard_set: ShardSet, gpu_backend: str) -> None:
    settings = BenchSettings(batch_size=8, image_size=SIZE, workers=2, seconds=0.2, rounds=2, device="cuda")
    runner = BackendRunner(shard_set, gpu_backend, settings)
    results = [runner.run(Trial(settings.config(gpu_backend), 0.1)) for _ in range(2)]
    runner.close()
    for result in results:
        assert result is not None
        assert result.gpu_bytes is not None
        assert result.gpu_bytes >= 0
