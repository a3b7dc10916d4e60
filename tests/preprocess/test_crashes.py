"""A decoder that ends its process: the image is named, and rejected where it does so alone, too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.engines import open_engine
from in21k.preprocess.estimate import estimate
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet
from in21k.shards.verify import verify

# Python runs it at the start of every worker: a decoder that dies by the signal that an image's comment names, and one
# that dies at the image after another whose comment says so.
CRASHING_DECODER = """
import os, re, signal, simplejpeg
decode_jpeg, is_poisoned = simplejpeg.decode_jpeg, False

def decode(data, *arguments, **options):
    global is_poisoned
    named = re.search(rb"end by (SIG[A-Z]+)", data)
    if named or is_poisoned:
        os.kill(os.getpid(), signal.SIGSEGV if is_poisoned else signal.Signals[named[1].decode()])
    is_poisoned = b"poison" in data
    return decode_jpeg(data, *arguments, **options)

simplejpeg.decode_jpeg = decode
"""
SELECT = SelectSettings(rare_threshold=0, val_per_class=1)
IMAGE = ImageSettings(size=32)
Sources = Callable[..., RawSource]


@pytest.fixture
def crashing_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder of every worker die at images that say so."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING_DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


@pytest.fixture
def source_of(tmp_path: Path, write_archive: Callable[..., Path], tar_of: Callable[..., bytes]) -> Sources:
    """Lay out two classes of the same images."""

    def source_of(images: dict[str, bytes], layout: str = "class tars") -> RawSource:
        classes = {"n01503061": images, "n02051845": images}
        if layout == "class tars":
            return open_raw_tar(write_archive(tmp_path / "raw.tar", classes))
        members = {f"{wnid}/{name}": data for wnid, images in classes.items() for name, data in images.items()}
        if layout == "class folders in a tar":
            (tmp_path / "raw.tar").write_bytes(tar_of(members))
            return open_raw_tar(tmp_path / "raw.tar")
        for name, data in members.items():
            (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / name).write_bytes(data)
        return open_folder(tmp_path / "raw")

    return source_of


@pytest.fixture
def images(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Callable[..., dict[str, bytes]]:
    """Make six images, of which those named get a comment."""

    def images(**comments: str) -> dict[str, bytes]:
        names = ("a", "b", "c", "d", "e", "f")
        return {
            f"{name}.jpg": encode(draw(60, 50, seed=seed), comment=comments.get(name, "drawn").encode())
            for seed, name in enumerate(names)
        }

    return images


def prepared_by(source: RawSource, out: Path, workers: int) -> PreparedSet:
    with open_engine("local", workers=workers) as run_tasks:
        return prepare(source, out, select=SELECT, image=IMAGE, run_tasks=run_tasks, max_reject_rate=0.5)


@pytest.mark.usefixtures("crashing_decoder")
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("class tars", "SIGSEGV"),
        ("class tars", "SIGFPE"),
        ("class folders", "SIGSEGV"),
        ("class folders in a tar", "SIGSEGV"),
    ],
)
def test_an_image_that_crashes_its_decoder_is_a_reject_and_the_run_goes_on(
    tmp_path: Path,
    source_of: Sources,
    images: Callable[..., dict[str, bytes]],
    files_of: Callable[[Path], dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
    layout: str,
    name: str,
) -> None:
    source = source_of(images(a=f"end by {name}", d=f"end by {name}"), layout)
    with caplog.at_level(logging.WARNING):
        prepared = prepared_by(source, tmp_path / "one", workers=1)
    rejects = pq.read_table(prepared.path / "rejects.parquet").to_pylist()
    assert [(row["wnid"], row["name"], row["reason"]) for row in rejects] == [
        (wnid, image, "crash") for wnid in ("n01503061", "n02051845") for image in ("a.jpg", "d.jpg")
    ]
    assert rejects[0]["detail"] == f"its decoder ended fresh processes by {name} and {name}"
    assert prepared.num_samples == {"train": 8}  # the first image is the one for validation
    assert verify(prepared, deep=True).problems == []
    assert f"a worker process died of {name} at n01503061/" in caplog.text
    assert "4 images crash their decoder (reason crash in rejects.parquet; the first: n01503061/" in caplog.text
    assert files_of(prepared.path) == files_of(prepared_by(source, tmp_path / "two", workers=2).path)


@pytest.mark.usefixtures("crashing_decoder")
def test_an_image_at_which_another_ones_damage_shows_is_stored(
    tmp_path: Path,
    source_of: Sources,
    images: Callable[..., dict[str, bytes]],
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:
    """As with memory overwritten by the decoder of the image before."""
    source = source_of(images(c="poison"))
    prepared = prepared_by(source, tmp_path / "out", workers=2)
    assert pq.read_table(prepared.path / "rejects.parquet").num_rows == 0
    undisturbed = prepare(source, tmp_path / "undisturbed", select=SELECT, image=IMAGE)
    assert files_of(prepared.path) == files_of(undisturbed.path)


@pytest.mark.usefixtures("crashing_decoder")
@pytest.mark.parametrize(
    ("name", "way_out"), [("SIGABRT", "name it in --exclude"), ("SIGKILL", "with fewer --workers")]
)
def test_any_other_signal_ends_the_run_by_name_of_file_and_signal(
    tmp_path: Path, source_of: Sources, images: Callable[..., dict[str, bytes]], name: str, way_out: str
) -> None:
    source = source_of(images(d=f"end by {name}"))
    with pytest.raises(ChildProcessError, match=rf"{name}\)? at n0\d+/d\.jpg.*{way_out}"):
        prepared_by(source, tmp_path / "out", workers=2)


@pytest.mark.usefixtures("crashing_decoder")
def test_a_signal_that_comes_after_a_crash_ends_the_run_by_name_too(
    tmp_path: Path, source_of: Sources, images: Callable[..., dict[str, bytes]]
) -> None:
    source = source_of(images(b="end by SIGSEGV", d="end by SIGABRT"))
    with pytest.raises(
        ChildProcessError, match=r"n0\d+/d\.jpg: its decoder ended a fresh process by SIGABRT; .*--exclude"
    ):
        prepared_by(source, tmp_path / "out", workers=1)


@pytest.mark.usefixtures("crashing_decoder")
def test_an_estimate_goes_on_past_a_crash(
    tmp_path: Path, source_of: Sources, images: Callable[..., dict[str, bytes]]
) -> None:
    source = source_of(images(d="end by SIGSEGV"))
    with open_engine("local", workers=2) as run_tasks:
        run = partial(estimate, source, tmp_path / "out", select=SELECT, image=IMAGE, taxonomy=Taxonomy.packaged())
        assert run(run_tasks=run_tasks, workers=2).num_images == 12


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
@pytest.mark.usefixtures("crashing_decoder")
def test_ray_goes_on_past_a_crash_too(
    tmp_path: Path,
    source_of: Sources,
    images: Callable[..., dict[str, bytes]],
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    source = source_of(images(d="end by SIGSEGV"))
    with open_engine("ray", workers=2) as run_tasks:
        prepared = prepare(
            source, tmp_path / "ray", select=SELECT, image=IMAGE, run_tasks=run_tasks, max_reject_rate=0.5
        )
    rejects = pq.read_table(prepared.path / "rejects.parquet").to_pylist()
    assert [(row["name"], row["reason"]) for row in rejects] == [("d.jpg", "crash")] * 2
    assert files_of(prepared.path) == files_of(prepared_by(source, tmp_path / "local", workers=2).path)
