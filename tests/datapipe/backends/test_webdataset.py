"""The backend `webdataset`: streams of shards by path, URL and command."""

from __future__ import annotations

import gzip
import http.server
import io
import itertools
import logging
import multiprocessing
import os
import re
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in21k.shards import ShardSet

pytest.importorskip("webdataset")

from in21k.datapipe import Loader, create_loader
from in21k.datapipe.backends import cpu_transforms, webdataset_reading, webdataset_stream
from in21k.datapipe.backends.webdataset_reading import expand_pattern, read_members
from in21k.datapipe.feed import MAX_TRIES
from in21k.datapipe.machine import descendants

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of more workers than cores

SIZE, NUM_TRAIN, NUM_VAL, NUM_SHARDS = 32, 52, 15, 6
Make = Callable[..., Loader]


@pytest.fixture(scope="session")
def pattern(shard_set: ShardSet) -> str:
    """The training shards of `shard_set`, by a pattern."""
    return f"{shard_set.path}/train/in21k-train-{{000000..{NUM_SHARDS - 1:06}}}.tar"


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Serve {path: bytes, or how many seconds to wait before nothing} by http; returns the URL that paths go behind."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(files: dict[str, Any], cut_to: int | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(files[self.path])))
                self.end_headers()
                self.wfile.write(files[self.path][:cut_to])

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def stored(shard_set: ShardSet) -> dict[str, Counter[tuple[int, bytes]]]:
    """Per split the samples by label and pixels, as the torch backend hands them out."""

    def samples(split: str) -> Counter[tuple[int, bytes]]:
        settings = {"batch_size": 1, "image_size": SIZE, "normalize": None, "dtype": torch.uint8, "workers": 1}
        loader = create_loader(shard_set, split=split, backend="torch", **settings)
        actual = samples_of(loader)
        loader.close()
        return Counter(actual)

    return {split: samples(split) for split in ("train", "val")}


def samples_of(loader: Loader) -> list[tuple[int, bytes]]:
    """Return label and pixels of each sample, in order."""
    return [
        (label, image.contiguous().numpy().tobytes())
        for images, labels in loader
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


def equal(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, itertools.chain(*one), itertools.chain(*two)))


AS_STORED = {"normalize": None, "dtype": torch.uint8}


# Samples


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("paints", ["opencv", "torchvision"])
def test_pixels_and_labels_are_those_of_the_torch_backend(
    open_stream: Make, stored: dict[str, Any], split: str, paints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of augment none at the stored size, with OpenCV and without."""
    if paints == "torchvision":
        monkeypatch.setattr(cpu_transforms, "find_spec", lambda _name: None)
    else:
        pytest.importorskip("cv2")
    actual = samples_of(open_stream(split=split, batch_size=1, **AS_STORED))
    assert Counter(actual) == stored[split]


@pytest.mark.parametrize(("augment", "mean"), [("none", 0.5), ("miil", 2.5), ("inception", 0.5), ("inception-ra", 2.5)])
def test_augmentations_are_those_of_the_other_backends(
    shard_set: ShardSet, open_stream: Make, augment: str, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker of validation takes the samples in the plan's order, and so they get the same draws."""
    settings = {"augment": augment, "image_size": 20, "batch_size": 5, "normalize": None, "seed": 2}
    reference = create_loader(shard_set, split="val", backend="torch", workers=1, **settings)
    actual, expected = list(open_stream(split="val", **settings)), list(reference)
    reference.close()
    for (images, labels), (wanted, wanted_labels) in zip(actual, expected, strict=True):
        assert labels.tolist() == wanted_labels.tolist()
        assert (images - wanted).abs().mean() < mean


def test_a_centre_crop_is_that_of_the_other_backends(shard_set: ShardSet, open_stream: Make) -> None:
    settings = {"image_size": 24, "crop_pct": 0.9, "batch_size": 15, "normalize": None}
    reference = create_loader(shard_set, split="val", backend="torch", workers=1, **settings)
    ((images, _),), ((wanted, _),) = list(open_stream(split="val", **settings)), list(reference)
    reference.close()
    assert (images - wanted).abs().max() <= 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_images_have_the_requested_dtype_and_layout(open_stream: Make, dtype: torch.dtype, channels_last: bool) -> None:
    raw = torch.cat([images for images, _ in open_stream(split="val", batch_size=15, **AS_STORED)])
    ((images, labels),) = open_stream(split="val", batch_size=15, dtype=dtype, channels_last=channels_last)
    assert (images.dtype, labels.dtype, images.shape) == (dtype, torch.int64, (15, 3, SIZE, SIZE))
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(images.float(), raw / 255, rtol=0, atol=4e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_batches_come_out_on_a_gpu_as_on_the_cpu(open_stream: Make) -> None:
    settings = {"split": "val", "batch_size": 4, "workers": 2}
    for (images, labels), (wanted, wanted_labels) in zip(
        open_stream(device="cuda", **settings), open_stream(**settings), strict=True
    ):
        assert images.is_cuda
        torch.testing.assert_close(images.cpu(), wanted)
        assert torch.equal(labels.cpu(), wanted_labels)


# Ranks, workers and epochs


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 2), (3, 2), (4, 1)])
def test_ranks_and_workers_share_the_samples_and_miss_none(
    open_stream: Make, pattern: str, stored: dict[str, Any], world_size: int, workers: int
) -> None:
    """Validation takes every sample of a rank's shards once; here it takes the training shards."""
    settings = {"split": "whole", "workers": workers, "world_size": world_size, **AS_STORED}
    ranks = [samples_of(open_stream(pattern, rank=rank, **settings)) for rank in range(world_size)]
    assert all(ranks)
    assert sum(map(Counter, ranks), Counter()) == stored["train"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_each_round_of_training_takes_each_shard_once(world_size: int, workers: int) -> None:
    """By every rank and worker together; a round has another order than the one before."""
    shards = webdataset_reading.ShardUrls([f"{number}" for number in range(7)], None, "")
    rounds: list[list[int]] = [[], []]
    for rank, worker in itertools.product(range(world_size), range(workers)):
        settings = webdataset_stream.LoaderConfig(batch_size=1, image_size=1, rank=rank, world_size=world_size)
        stream = webdataset_stream.BatchStream(shards, settings, 0, [])
        stream._worker, stream._num_workers = worker, workers
        for number in range(2):
            rounds[number] += stream._shards_of(number)
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(7))
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize(("epoch_samples", "batches"), [(8, 1), (23, 2), (NUM_TRAIN, 6), (200, 25)])
def test_every_rank_gets_as_many_batches_as_epoch_samples_says(
    open_stream: Make, pattern: str, stored: dict[str, Any], epoch_samples: int, batches: int
) -> None:
    """However few of the uneven shards a rank has, which go round as often as is needed."""
    for rank in range(2):
        loader = open_stream(pattern, rank=rank, world_size=2, workers=2, epoch_samples=epoch_samples, **AS_STORED)
        actual = samples_of(loader)
        assert len(loader) == loader.num_left() == batches
        assert len(actual) == 4 * batches
        assert set(actual) <= set(stored["train"])


def test_a_folder_says_itself_how_many_samples_make_an_epoch(open_stream: Make, stored: dict[str, Any]) -> None:
    loader = open_stream(**AS_STORED)
    actual = samples_of(loader)
    assert len(loader) == NUM_TRAIN // 4
    assert Counter(actual) == stored["train"]  # of one worker, and full batches: each once
    assert len(open_stream(epoch_samples=100)) == 25


def test_equal_runs_are_equal_and_epochs_and_seeds_differ(open_stream: Make) -> None:
    settings = {"augment": "inception", "workers": 2, "epoch_samples": 60}
    loader = open_stream(**settings)
    first = list(loader)
    assert equal(first, list(open_stream(**settings)))
    loader.set_epoch(1)
    second = list(loader)
    assert not equal(first, second)
    assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in second]
    loader.set_epoch(0)
    assert equal(first, list(loader))
    assert not equal(first, list(open_stream(seed=1, **settings)))


def test_the_same_image_is_augmented_otherwise_by_each_rank_each_worker_and_each_time(
    open_stream: Make, shard: Path, tmp_path: Path
) -> None:
    with tarfile.open(shard) as tar, tarfile.open(tmp_path / "0.tar", "w") as one:
        for member in tar.getmembers()[:2]:
            one.addfile(member, tar.extractfile(member))
    for number in range(1, 4):
        (tmp_path / f"{number}.tar").write_bytes((tmp_path / "0.tar").read_bytes())
    settings = {"augment": "miil", "world_size": 2, "workers": 2, "epoch_samples": 80, **AS_STORED}
    items = [
        sample
        for rank in range(2)
        for sample in samples_of(open_stream(f"{tmp_path}/{{0..3}}.tar", rank=rank, **settings))
    ]
    assert len(items) == 80
    assert len({label for label, _ in items}) == 1
    assert len({image for _, image in items}) == 80


def test_shuffling_goes_across_the_samples_of_a_shard(open_stream: Make, shard: Path) -> None:
    in_order = samples_of(open_stream(str(shard), "whole", **AS_STORED))
    shuffled = samples_of(open_stream(str(shard), batch_size=9, epoch_samples=9, **AS_STORED))
    assert sorted(shuffled) == sorted(in_order)
    assert shuffled != in_order


def test_fewer_shards_than_workers_lower_the_workers(
    open_stream: Make, stored: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    loader = open_stream(split="val", workers=5, **AS_STORED)
    assert "2 of 2 shards, and a worker needs one: 2 workers run, not 5" in caplog.text
    assert Counter(samples_of(loader)) == stored["val"]


def test_fewer_shards_than_ranks_are_refused_with_the_way_out(open_stream: Make) -> None:
    with pytest.raises(ValueError, match=r"2 shards for 3 ranks.*--shard-samples.*indexed backend"):
        open_stream(split="val", world_size=3)


# What a stream cannot know


def test_the_length_of_validation_is_not_known_and_a_list_of_it_is_made_all_the_same(open_stream: Make) -> None:
    loader = open_stream(split="val")
    with pytest.raises(TypeError, match=r"known at its end.*indexed backend"):
        len(loader)
    assert sum(len(labels) for _, labels in list(loader)) == NUM_VAL
    assert loader


def test_a_place_in_the_epoch_is_refused_with_the_way_out(open_stream: Make) -> None:
    loader = open_stream()
    next(iter(loader))
    with pytest.raises(ValueError, match=r"no place in mid-epoch.*save between epochs, or take an indexed backend"):
        loader.state_dict()
    with pytest.raises(ValueError, match=r"cannot go on from .*indexed backend"):
        loader.load_state_dict({"epoch": 0, "samples": 4})
    with pytest.raises(ValueError, match=r"not planned; take an indexed backend"):
        loader.describe_batch({"epoch": 0, "samples": 4})


def test_training_on_a_pattern_needs_epoch_samples(open_stream: Make, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"epoch_samples .*indexed backend"):
        open_stream(pattern)
    with pytest.raises(ValueError, match=r"7 samples, fewer than one global batch of 8 \(2 ranks x 4\)"):
        open_stream(pattern, epoch_samples=7, world_size=2)
    with pytest.raises(ValueError, match="epoch_samples is 0; wanted 1 or more"):
        open_stream(pattern, epoch_samples=0)
    with pytest.raises(ValueError, match="it is for training, and otherwise a split comes whole"):
        open_stream(split="val", epoch_samples=8)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"split": "test"}, "has no split 'test'; it holds train, val"),
        ({"batch_size": 53}, r"an epoch has 52 samples, fewer than one global batch of 53"),
        ({"seed": -1}, r"seed is -1; wanted 0 to 2\^63 - 1"),
        ({"world_size": 0}, "world_size is 0; wanted 1 or more"),
    ],
)
def test_what_does_not_fit_together_is_refused(open_stream: Make, arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        open_stream(**arguments)


# Paths, URLs, commands


def test_patterns_of_paths_and_commands_are_those_of_the_library(
    open_stream: Make, shard_set: ShardSet, stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WDS_SHARDS", str(shard_set.path))
    tar = "/train/in21k-train-00000"
    mixed = f"${{SHARDS}}{tar}{{0,1}}.tar::pipe:cat {shard_set.path}{tar}{{2..4}}.tar::file:{shard_set.path}{tar}5.tar"
    assert len(expand_pattern(mixed).urls) == NUM_SHARDS
    assert Counter(samples_of(open_stream(mixed, "whole", workers=2, **AS_STORED))) == stored["train"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("s3://bucket/{00..01}.tar", r"s3://bucket/00\.tar: .* opens no s3: .*pipe:aws s3 cp"),
        ("${NONESUCH}/{0..2}.tar", "not a pattern of shards"),
        ("a::{0..1.tar", "not a pattern of shards"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(open_stream: Make, wrong: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        open_stream(wrong, "whole")


def test_shards_come_by_http(
    open_stream: Make, shard_set: ShardSet, stored: dict[str, Any], serve: Callable[..., str]
) -> None:
    url = serve({f"/{path.name}": path.read_bytes() for path in (shard_set.path / "train").glob("*.tar")})
    urls = f"{url}/in21k-train-{{000000..{NUM_SHARDS - 1:06}}}.tar"
    assert Counter(samples_of(open_stream(urls, "whole", workers=2, **AS_STORED))) == stored["train"]


def test_compressed_shards_are_taken(open_stream: Make, shard: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    packed = samples_of(open_stream(f"{tmp_path}/a.tar.gz", "whole", **AS_STORED))
    assert packed == samples_of(open_stream(str(shard), "whole", **AS_STORED))


# What is broken


def half_of(shard: Path) -> bytes:
    """Return a shard up to where a sample begins: all that is there can be read."""
    with tarfile.open(shard) as tar:
        return shard.read_bytes()[: tar.getmembers()[8].offset]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("cut between members", "no end mark"),
        ("cut within a member", "unexpected end of data"),
        ("cut within a header", "no end mark"),
        ("empty", "no end mark"),
        ("garbage in the middle", "no end mark"),
        ("cut and compressed", r"no end mark|end of data"),
        ("two in one", "more behind its end mark"),
        ("missing", "No such file"),
        ("a name twice", "duplicate file name"),
    ],
)
@pytest.mark.parametrize("split", ["train", "whole"])
def test_a_shard_that_does_not_come_whole_ends_the_epoch_by_its_name(
    open_stream: Make, shard: Path, tmp_path: Path, broken: str, why: str, split: str
) -> None:
    whole, half = shard.read_bytes(), half_of(shard)
    twice = io.BytesIO()
    with tarfile.open(fileobj=twice, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"))
    content = {
        "cut between members": half,
        "cut within a member": half[:-100],
        "cut within a header": half + whole[len(half) :][:300],
        "empty": b"",
        "garbage in the middle": half + b"x" * 512 + whole[len(half) + 512 :],
        "cut and compressed": gzip.compress(whole)[:-2000],
        "two in one": whole + whole,
        "a name twice": twice.getvalue(),
    }
    path = tmp_path / "broken.tar"
    if broken in content:
        path.write_bytes(content[broken])
    settings = {"epoch_samples": 40} if split == "train" else {}
    with pytest.raises(OSError, match=rf"{re.escape(str(path))}: cannot be read to its end \(.*({why})") as caught:
        list(open_stream(f"{shard}::{path}", split, batch_size=20, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("cat {shard}; exit 3", "exit status 3"),
        ("cat {shard} nonesuch 2>/dev/null", "exit status 1"),
        ("false", "exit status 1"),
        ("head -c 5000 {shard}", "no end mark|end of data"),
        ("nonesuch-command 2>/dev/null", "exit status 127"),
        ("head -c 5000 {shard}; kill -9 $$", "exit status -9"),
    ],
)
def test_a_command_that_fails_ends_the_epoch_by_its_name(
    open_stream: Make, shard: Path, command: str, why: str
) -> None:
    url = f"pipe:{command.format(shard=shard)}"
    with pytest.raises(OSError, match=rf"{re.escape(url)}: cannot be read to its end \(.*({why})"):
        list(open_stream(url, "whole"))


@pytest.mark.parametrize(("cut_to", "path"), [(None, "/nonesuch.tar"), (6_000, "/a.tar"), (0, "/a.tar")])
def test_http_that_fails_ends_the_epoch_by_the_url(
    open_stream: Make, shard: Path, serve: Callable[..., str], cut_to: int | None, path: str
) -> None:
    url = serve({"/a.tar": shard.read_bytes()}, cut_to) + path
    with pytest.raises(OSError, match=rf"{re.escape(url)}: cannot be read to its end \(its command ended with exit"):
        list(open_stream(url, "whole"))


def test_a_command_that_stalls_ends_the_epoch_and_is_ended(
    open_stream: Make, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_reading, "STALL_S", 0.3)
    with pytest.raises(OSError, match=r"cannot be read to its end \(nothing came for 0.3 s"):
        list(open_stream(f"pipe:head -c 5000 {shard}; sleep 987654", "whole"))
    assert not running("sleep 987654")


def test_shards_without_samples_end_training(open_stream: Make, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(OSError, match=r"a\.tar: .*holds no sample"):
        list(open_stream(f"{tmp_path}/a.tar", epoch_samples=4))
    assert list(open_stream(f"{tmp_path}/a.tar", "whole")) == []


# Corrupt samples


def tar_with(shard: Path, changes: dict[int, dict[str, bytes | None]]) -> bytes:
    """Return a shard with other files in some samples: {number: {extension: content, or None to leave it out}}."""
    out = io.BytesIO()
    with tarfile.open(shard) as tar, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as written:
        for number, member in enumerate(tar.getmembers()):
            file = tar.extractfile(member)
            assert file
            content = changes.get(number // 2, {}).get(member.name.rpartition(".")[2], file.read())
            if content is not None:
                member.size = len(content)
                written.addfile(member, io.BytesIO(content))
    return out.getvalue()


def undecodable(shard: Path, number: int) -> bytes:
    """Return a JPEG's header without pixels."""
    with tarfile.open(shard) as tar:
        (member,) = [getmember for getmember in tar.getmembers()[2 * number :][:2] if getmember.name.endswith(".jpg")]
        file = tar.extractfile(member)
        assert file
        jpeg = file.read()
    return jpeg[: jpeg.index(b"\xff\xc4")].ljust(len(jpeg), b"\0")


@pytest.mark.parametrize("split", ["train", "whole"])
def test_a_corrupt_sample_is_passed_over_counted_and_named_once(
    open_stream: Make, shard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    whole = samples_of(open_stream(str(shard), "whole", **AS_STORED))
    changes = {2: {"jpg": undecodable(shard, 2)}, 5: {"jpg": b"no JPEG"}, 8: {"cls": b"none"}}
    (tmp_path / "a.tar").write_bytes(tar_with(shard, changes))
    settings = {"epoch_samples": 24} if split == "train" else {}
    loader = open_stream(f"{tmp_path}/a.tar", split, **settings, **AS_STORED)
    with caplog.at_level(logging.WARNING):
        actual = samples_of(loader)
    good = [sample for number, sample in enumerate(whole) if number not in changes]
    assert set(actual) == set(good)
    assert len(actual) == (24 if split == "train" else 6)
    assert loader.num_bad == 3
    messages = [record.getMessage() for record in caplog.records if record.name.endswith("loader")]
    assert len(messages) == 3
    instead = "the next one of the stream stands in" if split == "train" else "it is left out"
    for message in messages:
        assert re.match(rf"{tmp_path}/a\.tar: sample n\d+_\d+ .*; {instead}$", message)
    assert {word for word in ("does not decode", "b'none' as its class") if any(word in m for m in messages)} == {
        "does not decode",
        "b'none' as its class",
    }


def test_a_sample_that_lacks_a_part_is_corrupt(open_stream: Make, shard: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_with(shard, {3: {"cls": None}, 4: {"jpg": None}}))
    loader = open_stream(f"{tmp_path}/a.tar", "whole")
    assert sum(len(labels) for _, labels in loader) == 7
    assert loader.num_bad == 2


@pytest.mark.parametrize(("split", "let_pass"), [("train", 3), ("whole", 10)])
def test_past_the_rate_the_epoch_stops_and_names_shard_and_key(
    open_stream: Make, shard: Path, tmp_path: Path, split: str, let_pass: int
) -> None:
    """Of a pattern, whose size nobody knows, the rate is taken of 10,000."""
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(tar_with(shard, {number: {"jpg": b"no JPEG"} for number in range(6)}))
    settings = {"epoch_samples": 24} if split == "train" else {}
    number = let_pass + 1
    wanted = (
        rf"[ab]\.tar: sample n\d+_\d+ does not decode .*; {number} of \d+ samples are corrupt, past max_bad_rate 0.0"
    )
    with pytest.raises(ValueError, match=wanted) as caught:
        list(open_stream(f"{tmp_path}/{{a,b}}.tar", split, **settings))
    assert "\n" not in str(caught.value)
    assert sum(len(labels) for _, labels in open_stream(f"{tmp_path}/{{a,b}}.tar", "whole", max_bad_rate=0.5)) == 6


def test_a_rate_of_nothing_stops_at_the_first_and_a_folder_names_verify(open_stream: Make, shards_copy: Path) -> None:
    path = shards_copy / "val" / "in21k-val-000000.tar"
    path.write_bytes(tar_with(path, {0: {"jpg": b"no JPEG"}}))
    with pytest.raises(ValueError, match=rf"1 of 4 samples are corrupt, past .*; `in21k verify --deep {shards_copy}`"):
        list(open_stream(shards_copy, "val", max_bad_rate=0))


@pytest.mark.parametrize("kind", ["headless", "undecodable"])
def test_shards_without_any_good_sample_stop_training_whatever_the_rate(
    open_stream: Make, shard: Path, tmp_path: Path, kind: str
) -> None:
    jpegs = [b"no JPEG" if kind == "headless" else undecodable(shard, number) for number in range(9)]
    (tmp_path / "a.tar").write_bytes(tar_with(shard, {number: {"jpg": jpeg} for number, jpeg in enumerate(jpegs)}))
    with pytest.raises(ValueError, match=rf"does not decode.*; all of {MAX_TRIES} in a row are corrupt"):
        list(open_stream(f"{tmp_path}/a.tar", epoch_samples=8, max_bad_rate=1))
    assert list(open_stream(f"{tmp_path}/a.tar", "whole", max_bad_rate=1)) == []


# Nothing is left behind


def running(command: str) -> list[int]:
    """Return the processes whose command line is `command`."""
    items: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b" ".join(words).decode(errors="replace").strip() == command:
            items.append(int(path.parent.name))
    return items


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def no_queue_is_ending() -> bool:
    """Tell whether the threads of torch's queues have ended, which they do by themselves."""
    return "QueueFeederThread" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("end", ["close", "drop", "another iteration", "to the end"])
def test_no_process_thread_or_file_is_left_behind_and_a_loader_opens_again(
    open_stream: Make, shard_set: ShardSet, end: str
) -> None:
    def held() -> tuple[int, int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), len(descendants())

    list(open_stream())  # what the first use leaves for good
    assert wait_until(no_queue_is_ending)
    before = held()
    urls = f"pipe:cat {shard_set.path}/train/in21k-train-00000{{0..5}}.tar"
    loader = open_stream(urls, workers=2, epoch_samples=400)
    batches: Any = iter(loader)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    if end == "close":
        loader.close()
        assert list(batches) == []
    elif end == "another iteration":
        assert len(list(loader)) == 100
        assert list(batches) == []
    elif end == "to the end":
        assert len(list(batches)) == 99
    else:
        del batches
        loader.close()
    assert wait_until(lambda: held() == before), (held(), before)
    assert len(list(loader)) == 100


@pytest.mark.parametrize("when", ["while it waits for its turn", "while it reads"])
def test_a_command_is_ended_with_the_iteration(open_stream: Make, shard: Path, when: str) -> None:
    """Also one that would notice only when it prints again, and what it started in its turn."""
    pause = f"sleep 9876{os.getpid()}"
    command = f"pipe:(head -c 24576 {shard}; {pause}; tail -c +24577 {shard}) | cat"  # five or more at once
    loader = open_stream(command, "whole", batch_size=1 if when == "while it waits for its turn" else 4)
    batches = iter(loader)
    next(batches)
    assert wait_until(lambda: bool(running(pause)))
    loader.close()
    assert wait_until(lambda: not running(pause))
    assert multiprocessing.active_children() == []


def test_epochs_leave_nothing_behind(open_stream: Make) -> None:
    loader = open_stream(batch_size=16)
    counts: list[tuple[int, int, int]] = []
    for epoch in range(8):
        loader.set_epoch(epoch)
        batches: Any = iter(loader)
        list(batches if epoch % 2 else itertools.islice(batches, 1))
        del batches
        loader.close()
        assert wait_until(no_queue_is_ending)
        counts.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), len(descendants())))
    assert counts[-1] == counts[2]


# Reading alone


def test_members_are_read_as_tarfile_reads_them(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        wanted = [(member.name, file.read()) for member in tar if (file := tar.extractfile(member))]
    assert list(read_members(str(shard))) == wanted
    assert list(read_members(f"pipe:cat {shard}")) == wanted


def test_a_command_that_prints_little_by_little_is_read_whole(shard: Path) -> None:
    slowly = f"pipe:head -c 1 {shard}; sleep 0.1; tail -c +2 {shard} | head -c 700; sleep 0.1; tail -c +702 {shard}"
    assert list(read_members(slowly)) == list(read_members(str(shard)))


def test_a_reading_that_is_left_ends_its_command(shard: Path) -> None:
    members = read_members(f"pipe:cat {shard} {shard} {shard} /dev/zero")
    next(members)
    assert any("cat" in Path(f"/proc/{descendant}/cmdline").read_text() for descendant in descendants())
    members.close()  # pyright: ignore
    assert not webdataset_reading._commands
