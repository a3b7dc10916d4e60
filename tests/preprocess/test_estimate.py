"""A dry run says what the run will keep, need and take, and writes nothing."""

from __future__ import annotations

import gzip
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from in21k.preprocess import estimate as module
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.estimate import estimate
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def ask(tmp_path: Path, select: SelectSettings, image_settings: ImageSettings) -> Callable[..., Any]:
    """Estimate with the settings of `prepared`."""
    return partial(
        estimate,
        out=tmp_path / "out",
        select=select,
        image=image_settings,
        taxonomy=Taxonomy.packaged(),
        run_tasks=map,
        workers=2,
    )


@pytest.fixture(params=["class tars", "gzipped class tars", "class folders", "folder"])
def source(
    request: pytest.FixtureRequest, tmp_path: Path, raw_archive: Path, tar_of: Callable[..., bytes]
) -> RawSource:
    """The images of `raw_archive` in one of the layouts."""
    if request.param == "class tars":
        return open_raw_tar(raw_archive)
    if request.param == "gzipped class tars":
        (tmp_path / "raw.tar.gz").write_bytes(gzip.compress(raw_archive.read_bytes()))
        return open_raw_tar(tmp_path / "raw.tar.gz")
    images: dict[str, bytes] = {}
    for item in open_raw_tar(raw_archive).classes() or ():
        with item.open() as contents:
            for member, data in zip(contents.members, contents.read(contents.members), strict=True):
                images[f"{item.wnid}/{member.name}"] = data
    if request.param == "class folders":
        (tmp_path / "raw.tar").write_bytes(tar_of(images))
        return open_raw_tar(tmp_path / "raw.tar")
    for name, data in images.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(data)
    return open_folder(tmp_path / "raw")


def test_it_counts_what_the_run_keeps_in_every_layout(
    ask: Callable[..., Any], source: RawSource, prepared: PreparedSet, tmp_path: Path
) -> None:
    actual = ask(source)
    counts = prepared.info["counts"]
    assert actual.is_exact
    assert (actual.num_classes_seen, actual.num_classes) == (counts["num_classes_seen"], counts["num_classes"])
    assert actual.num_images == counts["num_raw_kept"]
    assert not (tmp_path / "out").exists()


def test_the_disk_it_needs_is_near_what_the_run_fills(
    ask: Callable[..., Any], raw_archive: Path, prepared: PreparedSet
) -> None:
    actual = ask(open_raw_tar(raw_archive))
    filled = sum(path.stat().st_size for path in prepared.path.glob("*/*.tar"))
    assert filled / 1.5 < actual.needed_bytes < filled * 1.5
    assert actual.num_sampled == 67
    assert actual.seconds > 0
    assert actual.images_per_s > 0
    assert actual.read_bytes_per_s > 0


def test_what_does_not_fit_is_said(ask: Callable[..., Any], raw_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(open_raw_tar(raw_archive)).fits
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    actual = ask(open_raw_tar(raw_archive))
    assert not actual.fits
    assert "it does NOT fit" in actual.render()


def test_when_counting_takes_too_long_the_rest_is_estimated_by_its_bytes(
    ask: Callable[..., Any], raw_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT_SECONDS", 0.0)
    actual = ask(open_raw_tar(raw_archive))
    assert not actual.is_exact
    assert 67 / 2 < actual.num_images < 67 * 2
    assert "about" in actual.render()


def test_of_a_long_stream_the_beginning_is_read(
    ask: Callable[..., Any], tmp_path: Path, raw_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT_SECONDS", 0.0)
    (tmp_path / "raw.tar.gz").write_bytes(gzip.compress(raw_archive.read_bytes()))
    assert not ask(open_raw_tar(tmp_path / "raw.tar.gz")).is_exact


def test_standard_input_is_refused(ask: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="which can be read only once; give a file"):
        ask(open_raw_tar(Path("-")))


def test_where_nothing_would_be_kept_it_says_so(ask: Callable[..., Any], raw_archive: Path) -> None:
    with pytest.raises(ValueError, match="no class would be kept; lower --rare-threshold"):
        ask(open_raw_tar(raw_archive), select=SelectSettings(rare_threshold=500))


def test_where_no_class_has_an_image_it_says_what_they_hold(
    ask: Callable[..., Any], tmp_path: Path, tar_of: Callable[..., bytes]
) -> None:
    content = tar_of({"n1.tar": tar_of({"n2.tar": tar_of({"1.jpg": b"abc"})})})
    (tmp_path / "nest.tar").write_bytes(content)
    (tmp_path / "nest.tar.gz").write_bytes(gzip.compress(content))
    for name, wanted in (
        ("nest.tar", "tars such as n2.tar: this is a tar of tars"),
        ("nest.tar.gz", "unpack"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: none of its 1 classes holds .*{wanted}"):
            ask(open_raw_tar(tmp_path / name))
