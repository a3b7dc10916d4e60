"""Backend `webdataset` and keys: a class and a JPEG belong together by their names before the first dot."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("webdataset")

from in21k.datapipe import Loader
from in21k.datapipe.backends import webdataset_stream
from in21k.datapipe.backends.webdataset_reading import ShardUrls

Make = Callable[..., Loader]


def tar_of_names(shard: Path, names: list[str]) -> bytes:
    """Return a tar of files by these names, each with the content that the first sample of a shard has there."""
    with tarfile.open(shard) as tar:
        content = {item.name.rpartition(".")[2]: file.read() for item in tar if (file := tar.extractfile(item))}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as written:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content[name.rpartition(".")[2].lower()])
            written.addfile(member, io.BytesIO(content[name.rpartition(".")[2].lower()]))
    return out.getvalue()


@pytest.mark.parametrize("split", ["train", "whole"])
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            ["a.b.0.cls", "a.b.0.jpg", "a.b.1.cls", "a.b.1.jpg"],
            r"\.b\.0\.cls and \.b\.1\.cls of one key, a, as a key ends",
        ),
        (["a.cls", "a.jpg", "a.b.cls", "a.b.jpg"], r"\.cls and \.b\.cls of one key, a, as"),
        (["x/a.0.jpg", "x/a.1.jpg"], r"\.0\.jpg and \.1\.jpg of one key, x/a, as"),
        (["a.cls", "a.jpg", "b.cls", "b.jpg", "a.cls", "a.jpg"], "two samples of key a"),
        (["a.cls", "b.cls", "a.jpg", "b.jpg"], "two samples of key a"),
        (["a.cls", "a.jpg", "a.JPG"], "duplicate file name"),
    ],
)
def test_a_key_that_a_shard_has_twice_is_an_error_of_the_shard(
    open_stream: Make, shard: Path, tmp_path: Path, names: list[str], why: str, split: str
) -> None:
    """It was one bad sample, and the others were lost in silence."""
    path = tmp_path / "keys.tar"
    path.write_bytes(tar_of_names(shard, names))
    settings = {"epoch_samples": 40} if split == "train" else {}
    for shards in (str(path), f"{shard}::{path}", f"{path}::{shard}"):
        with pytest.raises(OSError, match=rf"{re.escape(str(path))}: cannot be read to its end \(.*{why}"):
            list(open_stream(shards, split, **settings))


@pytest.mark.parametrize(
    "names",
    [
        ["a.cls", "a.jpg", "a.thumb.jpg", "b.small.jpg", "b.jpg", "b.cls"],  # an image may have others beside it
        ["x/a.cls", "x/a.jpg", "y/a.cls", "y/a.jpg"],
        ["a.CLS", "a.JPG", "A.cls", "A.jpg"],
    ],
)
def test_keys_that_differ_are_samples_of_their_own(
    open_stream: Make, shard: Path, tmp_path: Path, names: list[str]
) -> None:
    path = tmp_path / "keys.tar"
    path.write_bytes(tar_of_names(shard, names))
    assert sum(len(labels) for _, labels in open_stream(str(path), "whole")) == 2
    assert sum(len(labels) for _, labels in open_stream(f"{path}::{path}", "whole")) == 4  # a shard may come twice
    assert sum(len(labels) for _, labels in open_stream(str(path), epoch_samples=12)) == 12


@given(keys=st.lists(st.from_regex(r"[ab](\.[ab]){0,2}", fullmatch=True), min_size=1, max_size=6))
def test_no_sample_is_lost_unsaid_whatever_the_keys(keys: list[str]) -> None:
    """Of samples by any keys, dots in them or not, each comes out by itself, or the shard is an error."""
    names = [f"{key}.{extension}" for key in keys for extension in ("cls", "jpg")]
    settings = webdataset_stream.LoaderConfig(batch_size=1, image_size=1, training=False)
    stream = webdataset_stream.BatchStream(ShardUrls(["a.tar"], None, ""), settings, 0, [])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(webdataset_stream, "read_members", lambda _url: ((name, b"1") for name in names))
        patched.setattr(webdataset_stream, "parse", lambda name, _sample: name)
        first_dots = {key.partition(".")[0] for key in keys}
        if len(first_dots) == len(keys):
            assert len(list(stream._samples())) == len(keys)
        else:
            with pytest.raises(tarfile.ReadError, match=r"one key|two samples of key|duplicate file name"):
                list(stream._samples())


def test_a_sample_with_a_dot_in_its_key_is_corrupt_and_its_files_are_named(
    open_stream: Make, shard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.tar"
    path.write_bytes(tar_of_names(shard, ["a.v2.cls", "a.v2.jpg"]))
    assert list(open_stream(str(path), "whole")) == []
    assert "sample a has no .cls; it has .v2.cls, .v2.jpg; it is left out" in caplog.text


def test_a_shard_of_a_folder_that_holds_other_samples_than_dataset_json_says_is_an_error(
    open_stream: Make, shards_copy: Path
) -> None:
    path = shards_copy / "val" / "in21k-val-000001.tar"
    with tarfile.open(path) as tar:
        names = [
            f"{number}.{extension}" for number in range(len(tar.getmembers()) // 2 - 1) for extension in ("cls", "jpg")
        ]
    path.write_bytes(tar_of_names(path, names))
    with pytest.raises(OSError, match=rf"{path}: .*it holds 6 samples; wanted 7, as dataset.json says"):
        list(open_stream(shards_copy, "val"))
