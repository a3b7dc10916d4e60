"""A pack installs what was packed, from parts, without network, and refuses what is not whole."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.offline_pack import install, trim, write_images, write_parts

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
INFO = "small-1.0.dist-info"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel of extension modules for two Pythons, of which one is this."""
    path = tmp_path / "small-1.0-py3-none-any.whl"
    names = ["small/__init__.py", f"small/core.cpython-{PYTHON.replace('.', '')}-x.so", "small/core.cpython-299-x.so"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"# {name}\n")
        archive.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "".join(f"{name},,\n" for name in names) + f"{INFO}/RECORD,,\n")
    return path


def test_a_wheel_is_trimmed_to_one_python_its_record_too(wheel: Path) -> None:
    trim(wheel, PYTHON)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "small/core.cpython-299-x.so" not in names
        assert f"small/core.cpython-{PYTHON.replace('.', '')}-x.so" in names
        record = archive.read(f"{INFO}/RECORD").decode()
    assert "cpython-299" not in record
    assert len(record.splitlines()) == 3


@pytest.fixture
def pack(tmp_path: Path, wheel: Path) -> Path:
    images = tmp_path / "images.tar"
    images.write_bytes(b"images")
    parts = write_parts([wheel, images], tmp_path / "pack", 500, PYTHON)
    assert len(parts) > 1
    assert all(part.stat().st_size <= 500 for part in parts)
    return tmp_path / "pack"


def test_a_pack_installs_from_its_parts_and_lays_the_images_beside(tmp_path: Path, pack: Path) -> None:
    site, images = tmp_path / "work" / "site", tmp_path / "work" / "images.tar"
    install(pack, site, images)
    answer = subprocess.run(
        [sys.executable, "-c", "import small; print(small.__file__)"],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith(str(site))
    assert images.read_bytes() == b"images"
    for part in pack.glob("pack.0*"):
        part.unlink()
    install(pack, site, images)  # is there already


def test_a_pack_that_is_not_whole_or_of_another_python_is_refused(tmp_path: Path, pack: Path) -> None:
    site, images = tmp_path / "work" / "site", tmp_path / "images.tar"
    with pytest.raises(ValueError, match=r"has no pack\.json; make a pack"):
        install(tmp_path, site, images)
    first = pack / "pack.000"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ValueError, match="parts are damaged"):
        install(pack, site, images)
    first.unlink()
    with pytest.raises(ValueError, match=r"lacks pack\.000; bring every part"):
        install(pack, site, images)
    facts = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**facts, "python": "2.7"}))
    with pytest.raises(ValueError, match=r"is for Python 2\.7"):
        install(pack, site, images)
    assert not site.exists()


def test_images_are_spread_evenly_over_the_classes(tmp_path: Path, write_archive: Callable[..., Path]) -> None:
    classes = {f"n{number:08d}": {f"{i}.JPEG": b"%d" % i for i in range(number)} for number in (1, 3, 9)}
    archive = write_archive(tmp_path / "raw.tar", classes)
    assert write_images(archive, tmp_path / "few.tar", 8) == 8
    counts = []
    with tarfile.open(tmp_path / "few.tar") as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                counts.append(len(inner.getnames()))
    assert counts == [1, 3, 4]
