"""Features in files, and the work file that they come from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.training.features import feature_file
from in21k.training.features.feature_file import finished_features, open_features, write_features
from in21k.training.features.row_store import RowStore

from .features_at_hand import blobs, provenance, write

FORMS = ("parquet", "npy")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_goes_in_comes_out(tmp_path: Path, form: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_file, "GROUP_BYTES", 100)  # several row groups
    features, labels = blobs(23, 4, 7)
    file = write(tmp_path / f"out.{form}", features, labels, dtype=dtype)
    kept = features.astype(dtype)
    assert (len(file), file.num_features) == (23, 7)
    assert np.array_equal(np.concatenate(list(file.chunks())), kept)
    assert np.array_equal(file.array(), kept)
    assert file.array().dtype == np.dtype(dtype)
    assert np.array_equal(file.rows([20, 3, 3]), kept[[20, 3, 3]])
    assert file.names([22, 0]) == [("n3_22", "n3"), ("n0_0", "n0")]
    assert file.find(["n3_22", "n0_0"]) == [22, 0]
    assert file.classes[0] == ["n0", "n1", "n2", "n3"]
    assert file.labels(["n3", "n2", "n1", "n0"]).tolist() == (3 - labels).tolist()
    assert file.provenance["model"] == "m"


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    features, labels = blobs(9, 3, 4)
    write(tmp_path / "out.parquet", features, labels)
    table = pq.read_table(tmp_path / "out.parquet")
    assert pa.types.is_fixed_size_list(table.schema.field("features").type)
    assert table.schema.field("features").type.value_type == pa.float16()
    assert np.allclose(np.array(table["features"].to_pylist(), np.float32), features, atol=0.01)
    write(tmp_path / "out.npy", features, labels)
    assert np.array_equal(np.load(tmp_path / "out.npy"), features.astype(np.float16))
    assert pq.read_table(tmp_path / "out.keys.parquet").column_names == ["key", "wnid", "class_index"]


@given(sizes=st.lists(st.integers(0, 9), max_size=6), group=st.integers(1, 12))
def test_files_do_not_depend_on_the_parts_that_they_are_written_from(
    sizes: list[int], group: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    features, labels = blobs(sum(sizes), 3, 2) if sum(sizes) else (np.empty((0, 2), np.float32), np.empty(0, int))
    keys = pa.table({"key": [str(row) for row in range(len(labels))], "wnid": ["n"] * len(labels)})
    keys = keys.append_column("class_index", pa.array(labels, pa.int32()))
    ends = np.cumsum(sizes).tolist()
    parts = [(keys.slice(end - size, size), features[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_file, "GROUP_BYTES", 4 * group)
        write_features(folder / "parts.parquet", parts, provenance(2), len(labels), "float16")
        write_features(folder / "whole.parquet", [(keys, features)], provenance(2), len(labels), "float16")
    assert (folder / "parts.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert len(open_features(folder / "parts.parquet")) == len(labels)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_whose_writing_fails_does_not_appear(tmp_path: Path, form: str) -> None:
    features, labels = blobs(9, 3, 4)
    keys = pa.table({"key": ["a"] * 9, "wnid": ["n"] * 9, "class_index": pa.array(labels, pa.int32())})

    def parts():
        yield keys, features
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_features(tmp_path / f"out.{form}", parts(), provenance(4), 18, "float16")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_features_file_is_refused(tmp_path: Path) -> None:
    features, labels = blobs(9, 3, 4)
    with pytest.raises(ValueError, match=r"NAME.parquet or NAME.npy"):
        open_features(tmp_path / "out.txt")
    with pytest.raises(ValueError, match="no such file"):
        open_features(tmp_path / "out.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="its metadata says nothing of in21k-features"):
        open_features(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken.parquet: no features"):
        open_features(tmp_path / "broken.parquet")
    write(tmp_path / "out.npy", features, labels)
    np.save(tmp_path / "out.npy", features[:5].astype(np.float16))
    with pytest.raises(ValueError, match=r"it is float16 \(5, 4\), its keys are of float16 \(9, 4\)"):
        open_features(tmp_path / "out.npy")
    file = write(tmp_path / "out.parquet", features, labels)
    with pytest.raises(ValueError, match=r"n1_99: neither an image file nor a key in .*; near ones: n1_"):
        file.find(["n1_99"])
    with pytest.raises(ValueError, match=r"images of 2 classes that are not among the 1 \(n1, n2\)"):
        file.labels(["n0"])


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_file_is_found_again_and_another_is_not_overwritten_unasked(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"out.{form}"
    assert finished_features(path, provenance(4)) is None
    write(path, *blobs(9, 3, 4))
    actual = finished_features(path, provenance(4))
    assert actual is not None
    assert len(actual) == 9
    with pytest.raises(ValueError, match=r"made with other settings .*'pre-logits' -> 'x'.*--overwrite"):
        finished_features(path, provenance(4, layer="x"))
    assert finished_features(path, provenance(4, layer="x"), overwrite=True) is None
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a features file of in21k, so it is not overwritten"):
        finished_features(path, provenance(4), overwrite=True)


def test_keys_whose_array_never_came_are_no_hindrance(tmp_path: Path) -> None:
    write(tmp_path / "out.npy", *blobs(9, 3, 4))
    (tmp_path / "out.npy").unlink()
    assert finished_features(tmp_path / "out.npy", provenance(4)) is None
    (tmp_path / "out.keys.parquet").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match=r"out.keys.parquet: exists and is not a features file"):
        finished_features(tmp_path / "out.npy", provenance(4), overwrite=True)


def test_a_parquet_file_that_does_not_fit_into_memory_says_what_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "out.parquet", *blobs(9, 3, 4))
    monkeypatch.setattr(feature_file, "free_bytes", lambda: 9 * 4 * 2 - 1)
    with pytest.raises(ValueError, match=r"write them as an .npy"):
        file.array()


def test_a_kill_on_the_way_to_another_array_leaves_no_mixed_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, left = tmp_path / "home", tmp_path / "left"
    home.mkdir()
    old, labels = blobs(9, 3, 4)
    path = home / "out.npy"
    write(path, old, labels, fingerprint="old")

    def leaving(change: Callable[..., Any]) -> Callable[..., Any]:
        """Keep what a kill before and after a change of names would leave."""

        def changed(self: Path, *words: Any, **options: Any) -> Any:
            shutil.copytree(home, left / str(len(list(left.iterdir()))))
            result = change(self, *words, **options)
            shutil.copytree(home, left / str(len(list(left.iterdir()))))
            return result

        return changed

    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", leaving(Path.replace))
        patch.setattr(Path, "unlink", leaving(Path.unlink))
        write(path, old + 1, labels, fingerprint="new")
    items: list[str] = []
    for item in sorted(left.iterdir(), key=lambda folder: int(folder.name)):
        if (item / "out.npy").exists():
            file = open_features(item / "out.npy")
            rows = (old + (file.provenance["fingerprint"] == "new")).astype(np.float16)
            assert np.array_equal(file.array(), rows)
            items.append(file.provenance["fingerprint"])
        else:  # half done: the same command makes it anew
            assert finished_features(item / "out.npy", provenance(4, fingerprint="new")) is None
    assert {"old", "new"} == set(items)
    assert len(items) < len(list(left.iterdir()))


def test_an_array_that_could_not_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    old, labels = blobs(9, 3, 4)
    write(tmp_path / "out.npy", old, labels)

    def parts():
        yield pa.table({"key": ["a"] * 9, "wnid": ["n"] * 9, "class_index": pa.array(labels, pa.int32())}), old
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_features(tmp_path / "out.npy", parts(), provenance(4), 18, "float16")
    assert np.array_equal(open_features(tmp_path / "out.npy").array(), old.astype(np.float16))


def test_rows_left_by_a_kill_are_found_again_by_the_same_work_alone(tmp_path: Path) -> None:
    out, facts = tmp_path / "out.parquet", provenance(3)
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    with RowStore(out, facts, (4, 3), "float16") as store:
        assert store.place is None
        store.put(np.array([2, 0]), rows[[2, 0]])
        store.save({"epoch": 0, "samples": 2}, now=True)
        store.put(np.array([1]), rows[[1]])  # of which no save knows
        with pytest.raises(ValueError, match="another in21k is making it"), RowStore(out, facts, (4, 3), "float16"):
            pass
    with RowStore(out, facts, (4, 3), "float16") as store:
        assert store.place == {"epoch": 0, "samples": 2}
        assert store.num_filled == 3
        filled, actual = store.part(0, 4)
        assert filled.tolist() == [True, True, True, False]
        assert np.array_equal(actual, rows[:3])
    other = provenance(3, layer="other", amp="off")
    refusal = r"was made with other settings \(amp None -> 'off'; layer 'pre-logits' -> 'other'\).*--overwrite"
    with pytest.raises(ValueError, match=refusal), RowStore(out, other, (4, 3), "float16"):
        pass
    with RowStore(out, facts, (4, 3), "float16", overwrite=True) as store:  # they are what is asked for
        assert (store.place, store.num_filled) == ({"epoch": 0, "samples": 2}, 3)
    with RowStore(out, other, (4, 3), "float16", overwrite=True) as store:
        assert (store.place, store.num_filled) == (None, 0)
        store.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_all_rows_is_one_line_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with (
        pytest.raises(ValueError, match=r"out.parquet.work: takes 7,[\d,]{11} MB, and .* MB of the disk are free"),
        RowStore(out, provenance(3), (1 << 50, 3), "float16"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # what another fills after that look
        patch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
        with pytest.raises(OSError, match=r"No space left on device.*out.parquet.work"):
            RowStore(out, provenance(3), (4, 3), "float16").__enter__()
    assert list(tmp_path.iterdir()) == []
    with RowStore(out, provenance(3), (4096, 300), "float32") as store:
        assert (tmp_path / "out.parquet.work").stat().st_blocks * 512 >= 4096 * 300 * 4  # no row is a hole
        store.save({"samples": 0}, now=True)
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"), RowStore(out, provenance(3), (4096, 300), "float32"):
        pass
    assert len(list(tmp_path.iterdir())) == 2  # the rows that are there stay


def test_a_file_system_that_keeps_no_room_takes_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    with RowStore(tmp_path / "out.parquet", provenance(3), (4, 3), "float16") as store:
        store.put(np.array([3]), np.ones((1, 3), np.float16))
        assert store.num_filled == 1


def failing(number: int) -> Callable[..., None]:
    """Return what fails as the system calls do."""

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail
