"""Small archives, a prepared data set and a shard set, made by the real code from drawn images."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.dataset import PreparedSet, ShardSet
from in21k.shards.files.atomic import read_json, sealed, write_json
from in21k.shards.files.record import record_files
from in21k.shards.pack import ShardSettings, pack

from .fuzz.jpegs import lossless

settings.register_profile("in21k", deadline=None, max_examples=40)
settings.load_profile("in21k")

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"

# Images per class of `raw_archive`. Of the real synsets four lie on one path; the last two are dropped.
CLASSES = {
    "n01861778": 11,  # mammal
    "n01503061": 17,  # bird
    "n02051845": 12,  # pelican, below bird
    "n01858441": 14,  # swan, below bird
    "n00015388": 13,  # animal, above all of them
    "n09450163": 6,  # sun: as many as the threshold
    "n04146614": 1,  # school bus
}
RARE_THRESHOLD, VAL_PER_CLASS, SIZE = 6, 3, 32
SHARD_SAMPLES = 9


@pytest.fixture(autouse=True)
def _no_patience_with_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("in21k.shards.files.lock.PATIENCE_S", 0.0)


def _hide_gpus(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torch.cuda.is_available", lambda: False)
    patch.setattr("torch.cuda.device_count", lambda: 0)
    patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that a test starts


@pytest.fixture(scope="session", autouse=True)
def _hidden_gpus() -> Iterator[pytest.MonkeyPatch]:
    """Run every test as on a machine without a GPU, session fixtures included; undone, it shows the GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        _hide_gpus(patch)
        yield patch


@pytest.fixture(autouse=True)
def _gpus_for_gpu_tests(request: pytest.FixtureRequest, _hidden_gpus: pytest.MonkeyPatch) -> Iterator[None]:
    """Show the GPUs to tests marked `gpu`."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    _hidden_gpus.undo()
    yield
    _hide_gpus(_hidden_gpus)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real archives beside the repository; its tests skip where there is none."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data: the real archives are not at hand")
    return DATA


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    """Draw an RGB image of smooth random colours, which survive JPEG and resizing."""

    def draw(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode a picture: `encode(image, "PNG", exif=...)`; a JPEG of quality 90 unless said otherwise."""

    def encode(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, image_format, **({"quality": 90} if image_format == "JPEG" else {}) | options)
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def encode_lossless() -> Callable[[Image.Image], bytes]:
    """Encode an RGB picture as a lossless JPEG."""
    return lossless


@pytest.fixture(scope="session")
def decode() -> Callable[[bytes], Image.Image]:
    """Decode image bytes whole."""

    def decode(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    return decode


@pytest.fixture(scope="session")
def tar_of() -> Callable[..., bytes]:
    """Make a tar in memory of {name: bytes}; a `TarInfo` in place of bytes goes in as it is (links, folders)."""

    def tar_of(members: Mapping[str, bytes | tarfile.TarInfo] | list[tuple[str, bytes]]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, content in members.items() if isinstance(members, Mapping) else members:
                if isinstance(content, tarfile.TarInfo):
                    archive.addfile(content)
                    continue
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return out.getvalue()

    return tar_of


@pytest.fixture(scope="session")
def write_archive(tar_of: Callable[..., bytes]) -> Callable[..., Path]:
    """Write a raw archive of {wnid: {name: bytes}}, and of other outer members given as {name: bytes}."""

    def write_archive(
        path: Path, classes: Mapping[str, Mapping[str, bytes]], others: Mapping[str, bytes] | None = None
    ) -> Path:
        tars = {f"{wnid}.tar": tar_of(images) for wnid, images in classes.items()}
        path.write_bytes(tar_of({**tars, **(others or {})}))
        return path

    return write_archive


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Read every file below a folder: {relative path: bytes}."""

    def files_of(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    return files_of


@pytest.fixture(scope="session")
def raw_archive(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    write_archive: Callable[..., Path],
) -> Path:
    """A raw archive of the classes `CLASSES`, JPEGs of various sizes, none smaller than the stored size."""
    sizes = np.random.default_rng(1)
    classes: dict[str, dict[str, bytes]] = {}
    for wnid, count in CLASSES.items():
        classes[wnid] = {}
        for number in range(count):
            width, height = sizes.integers(33, 80, 2).tolist()
            image = draw(width, height, seed=int(wnid[1:]) + number)
            classes[wnid][f"{wnid}_{number * 7}.JPEG"] = encode(image)
    return write_archive(tmp_path_factory.mktemp("raw") / "raw.tar", classes)


@pytest.fixture(scope="session")
def select() -> SelectSettings:
    """What `prepared` keeps: 5 of 7 classes, 3 images of each for validation."""
    return SelectSettings(rare_threshold=RARE_THRESHOLD, val_per_class=VAL_PER_CLASS)


@pytest.fixture(scope="session")
def image_settings() -> ImageSettings:
    """How `prepared` stores: squished to 32 x 32."""
    return ImageSettings(size=SIZE)


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, raw_archive: Path, select: SelectSettings, image_settings: ImageSettings
) -> PreparedSet:
    """The prepared data set of `raw_archive`: 52 training and 15 validation images of 32 x 32. Not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(open_raw_tar(raw_archive), out, select=select, image=image_settings)


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedSet) -> ShardSet:
    """The shard set of `prepared`: 6 training and 2 validation shards. Not to be changed; see `shards_copy`."""
    out = tmp_path_factory.mktemp("shards") / "out"
    return pack(prepared, out, ShardSettings(shard_samples=SHARD_SAMPLES))


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """Record the files of a damaged folder anew, as whoever forges a data set would: what it says is all there is."""

    def reseal(path: Path) -> None:
        info = read_json(path / "dataset.json")
        kind = ShardSet if info.get("format") == ShardSet.format else PreparedSet
        names = [name for name in kind.recorded(info) if (path / name).is_file()]
        write_json(path / "dataset.json", sealed({**info, "files": record_files(path, names)}))

    return reseal


@pytest.fixture(scope="session")
def as_version_1() -> Callable[[Path], None]:
    """Make a folder what it was before `dataset.json` recorded its files."""

    def as_version_1(path: Path) -> None:
        info = {**read_json(path / "dataset.json"), "version": 1}
        del info["files"], info["self_sha256"]
        write_json(path / "dataset.json", info)

    return as_version_1


@pytest.fixture
def prepared_copy(tmp_path: Path, prepared: PreparedSet) -> Path:
    """A copy of `prepared` that a test may damage."""
    return Path(shutil.copytree(prepared.path, tmp_path / "prepared_copy"))


@pytest.fixture
def shards_copy(tmp_path: Path, shard_set: ShardSet) -> Path:
    """A copy of `shard_set` that a test may damage."""
    return Path(shutil.copytree(shard_set.path, tmp_path / "shards_copy"))
