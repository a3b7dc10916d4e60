"""The DALI backends as far as no GPU is needed: what is read ahead, what the pipeline is asked for, what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from in21k.datapipe import Loader
from in21k.datapipe.plan import PlannedBatch
from in21k.datapipe.settings import LoaderConfig
from in21k.shards import ShardSet, open_dataset

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from nvidia.dali import pipeline as nvidia_pipeline

from in21k.datapipe.backends import dali_loader as dali
from in21k.datapipe.backends.dali_loader import READ_AHEAD, DaliCpuLoader, DaliGpuLoader, dali_error_reason, read_ahead
from in21k.datapipe.backends.dali_pipeline import HW_DECODER_LOAD, build_pipeline, input_names, memory_hints

MakeLoader = Callable[..., Loader]
GPU = torch.device("cuda", 1)


# Reading ahead


def test_results_come_in_order_and_a_few_are_prefetched() -> None:
    begun = list[int]()

    def read(number: int) -> int:
        begun.append(number)
        return number * number

    results = read_ahead(read, range(20))
    assert begun == []
    first = next(results)
    results.close()
    assert first == 0
    assert len(begun) <= READ_AHEAD + 1
    assert list(read_ahead(read, range(20))) == [number * number for number in range(20)]


def test_several_threads_read_at_once() -> None:
    together = threading.Barrier(2, timeout=10)

    def read(number: int) -> int:
        together.wait()
        return number

    assert list(read_ahead(read, range(4))) == [0, 1, 2, 3]


def test_an_error_comes_in_its_place_and_leaves_no_thread() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise OSError("gone")
        return number

    threads, actual = threading.active_count(), list[int]()
    with pytest.raises(OSError, match="gone"):
        actual.extend(read_ahead(read, range(9)))
    assert actual == [0, 1]
    assert threading.active_count() == threads


# What the pipeline is asked for


def no_inputs() -> tuple[Any, ...]:
    raise StopIteration


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The arguments of some operators of the graph that was drawn last; no pipeline is built, which may need a GPU."""
    from nvidia.dali import fn
    from nvidia.dali import pipeline as dali_pipeline

    values: dict[str, dict[str, Any]] = {}

    def noting(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **arguments: Any) -> Any:
            values[name] = arguments
            return operator(*inputs, **arguments)

        return call

    for module, name in ((fn.decoders, "image"), (fn.decoders, "image_slice"), (fn, "crop_mirror_normalize")):
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    monkeypatch.setattr(dali_pipeline.Pipeline, "build", lambda _: None)
    return values


def settings_of(**changed: Any) -> LoaderConfig:
    return LoaderConfig(**({"batch_size": 8, "image_size": 32, "workers": 1} | changed))


@pytest.mark.parametrize(("load", "wanted"), [(None, HW_DECODER_LOAD), (0.0, 0.0), (0.8, 0.8)])
@pytest.mark.parametrize(("augment", "decoder"), [("none", "image"), ("inception", "image_slice")])
def test_the_gpus_decoders_get_the_hardwares_share(
    operators: dict[str, dict[str, Any]], load: float | None, wanted: float, augment: str, decoder: str
) -> None:
    settings = settings_of(augment=augment, hw_decoder_load=load, device=GPU)
    build_pipeline(settings, no_inputs, threads=3, device_id=1)
    assert operators[decoder]["hw_decoder_load"] == wanted
    assert operators[decoder]["device"] == "mixed"
    if decoder == "image_slice":
        assert {"start", "shape"} <= operators[decoder].keys()  # only the window is decoded
    build_pipeline(settings_of(augment=augment), no_inputs, threads=3, device_id=None)
    assert "hw_decoder_load" not in operators[decoder]
    assert operators[decoder]["device"] == "cpu"


@pytest.mark.parametrize("augment", ["none", "inception"])
def test_the_gpus_decoder_allocates_for_the_largest_image(operators: dict[str, dict[str, Any]], augment: str) -> None:
    settings = settings_of(augment=augment, device=GPU)
    build_pipeline(settings, no_inputs, threads=3, device_id=1, largest_sides=(224, 300))
    decoder = operators["image_slice" if settings.policy.crops else "image"]
    assert (decoder["device_memory_padding"], decoder["host_memory_padding"]) == (2**20, 2**20)
    assert (decoder["preallocate_height_hint"], decoder["preallocate_width_hint"]) == (224, 300)
    assert memory_hints((9000, 9000))["device_memory_padding"] == 16 * 2**20
    build_pipeline(settings, no_inputs, threads=3, device_id=None, largest_sides=(224, 300))
    assert "device_memory_padding" not in operators["image_slice" if settings.policy.crops else "image"]


@pytest.mark.parametrize("augment", ["none", "miil", "inception", "inception-ra"])
@pytest.mark.parametrize("crop_pct", [None, 0.9])
def test_every_graph_can_be_drawn_for_a_gpu(
    operators: dict[str, dict[str, Any]], augment: str, crop_pct: float | None
) -> None:
    settings = settings_of(augment=augment, crop_pct=crop_pct if augment == "none" else None, device=GPU)
    pipeline = build_pipeline(settings, no_inputs, threads=3, device_id=1)
    assert pipeline.device_id == 1
    assert pipeline.num_threads == 3
    assert "jpegs" in input_names(settings.policy)


@pytest.mark.parametrize(
    ("dtype", "channels_last", "layout", "made"),
    [
        (torch.float16, True, "HWC", "FLOAT16"),
        (torch.bfloat16, True, "HWC", "FLOAT"),  # DALI knows none
        (torch.float32, False, "CHW", "FLOAT"),
        (torch.uint8, False, "CHW", "UINT8"),
    ],
)
def test_a_gpus_pipeline_makes_the_type_and_layout_itself(
    operators: dict[str, dict[str, Any]], dtype: torch.dtype, channels_last: bool, layout: str, made: str
) -> None:
    from nvidia.dali import types

    normalize = None if dtype == torch.uint8 else "imagenet"
    settings = settings_of(dtype=dtype, channels_last=channels_last, normalize=normalize, device=GPU)
    build_pipeline(settings, no_inputs, threads=1, device_id=1)
    last = operators["crop_mirror_normalize"]
    assert (last["output_layout"], last["dtype"]) == (layout, getattr(types, made))


def test_the_cpus_pipeline_stays_on_the_cpu_when_batches_go_to_a_gpu(shard_set: ShardSet) -> None:
    loader = DaliCpuLoader(shard_set.split("train"), settings_of(device=GPU, normalize="imagenet"))
    assert loader._device_id() is None
    made = loader._pipeline_settings
    assert (made.device.type, made.dtype, made.normalize, made.channels_last) == ("cpu", torch.uint8, None, True)
    on_gpu = DaliGpuLoader(shard_set.split("train"), settings_of(device=GPU, normalize="imagenet"))
    assert on_gpu._device_id() == 1
    assert on_gpu._pipeline_settings == on_gpu.settings


# What it hands out, and says


def test_the_outputs_of_the_dynamic_executor_are_not_copied(make: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[int]()
    from_dlpack = torch.from_dlpack

    def noting(tensor: Any) -> torch.Tensor:
        images = from_dlpack(tensor)
        made.append(images.data_ptr())
        return images

    monkeypatch.setattr(torch, "from_dlpack", noting)
    loader = make("dali_cpu")
    items = [images.data_ptr() for images, _ in loader]
    assert isinstance(loader, dali.DaliCpuLoader)
    if getattr(loader._pipeline, "exec_dynamic", False):
        assert items == made
    else:
        assert made == []  # DALI 1.34 uses its buffers again


def test_an_error_of_dali_is_reduced_to_the_line_with_its_reason() -> None:
    new = "Error in CPU operator `image`,\nencountered:\n\nnvImageCodec failure: '#3'\nCurrent pipeline object"
    old = "Error when executing CPU operator encountered:\nError in thread 0: no JPEG\nStacktrace (10 entries)"
    assert dali_error_reason(RuntimeError(new)) == "nvImageCodec failure: '#3'"
    assert dali_error_reason(RuntimeError(old)) == "Error in thread 0: no JPEG"
    assert dali_error_reason(RuntimeError("Failed to decode sample #0 : \nCurrent")) == "Failed to decode sample #0"
    assert dali_error_reason(RuntimeError()) == "RuntimeError"


def test_a_corrupt_samples_message_does_not_end_with_the_state_of_the_pipeline(
    make: MakeLoader, damage: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    list(make("dali_cpu", shards=damage({3: "undecodable"}), batch_size=1))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "does not decode (" in message
    assert "no longer valid" not in message


GPU_ERRORS = [
    "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory",
    "CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719):\nunspecified launch failure",
]


@pytest.mark.parametrize("message", GPU_ERRORS)
@pytest.mark.parametrize("after", [0, 2])
def test_an_error_of_the_gpu_is_raised_as_it_is_and_blamed_on_no_image(
    make: MakeLoader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, message: str, after: int
) -> None:
    loader = make("dali_cpu")
    take, error = DaliCpuLoader._take, RuntimeError(f"Critical error in pipeline:\n{message}")

    def failing(self: DaliCpuLoader, count: int) -> torch.Tensor | None:
        if loader.state_dict()["samples"] == 8 * after:
            raise error
        return take(self, count)

    monkeypatch.setattr(DaliCpuLoader, "_take", failing)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert caught.value is error
    assert loader.num_bad == 0
    assert not caplog.records
    monkeypatch.undo()
    assert len(list(loader)) == 6 - after


def test_samples_are_tried_on_the_cpu_whatever_the_pipeline_runs_on(
    damage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is out of memory refuses every image; the CPU tells which one does not decode."""
    split = open_dataset(damage({3: "undecodable"})).split("train")
    loader = DaliGpuLoader(split, settings_of(device=GPU))
    made, begin = list[int | None](), nvidia_pipeline.Pipeline.__init__

    def noting(self: Any, batch_size: int, num_threads: int, device_id: int | None, **options: Any) -> None:
        made.append(device_id)
        begin(self, batch_size, num_threads, device_id, **options)

    monkeypatch.setattr(nvidia_pipeline.Pipeline, "__init__", noting)
    bad = list(loader._undecodable(np.arange(6)))
    assert [item.position for item in bad] == [3]
    assert set(made) == {None}
    loader._scheduled.append(dali._Read(PlannedBatch(np.array([0, 1]), 0, 0), np.array([0, 1]), [], ()))
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError) as caught:
        loader._restart_without_corrupt(error)
    assert caught.value is error


@pytest.mark.parametrize("load", [-0.1, 1.1, float("nan")])
def test_a_part_that_is_none_is_refused(load: float) -> None:
    with pytest.raises(ValueError, match=r"hw_decoder_load is .*; wanted 0 to 1"):
        settings_of(hw_decoder_load=load)


@pytest.mark.parametrize("backend", ["dali_cpu", "torch", "auto"])
def test_the_hardware_decoder_is_of_dali_gpu_alone(
    make: MakeLoader, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"hw_decoder_load is 0\.5; it goes with backend dali_gpu"):
        make(backend, hw_decoder_load=0.5)


def test_positions_are_read_as_they_were_planned(make: MakeLoader, shard_set: ShardSet) -> None:
    loader = make("dali_cpu")
    assert isinstance(loader, DaliCpuLoader)
    batch = next(loader._plan().batches(0))
    read = loader._read(batch)
    assert np.array_equal(read.used, batch.positions)
    assert len(read.inputs) == len(input_names(loader.settings.policy))
    assert read.bad == []
