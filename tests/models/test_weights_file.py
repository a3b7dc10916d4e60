"""Files of weights that would unpack to far more than they take."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.models.weights_file import read_weights
from in21k.shards.files.torch_zip import MOST_UNPACKED, SPARE_BYTES, check_unpacked
from in21k.shards.tree import SemanticTree
from in21k.training.runs.checkpoint import load_checkpoint, parse_checkpoint

pytestmark = pytest.mark.security

MB = 2**20


def packed(content: object, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """What torch.save writes, packed anew."""
    whole, out = io.BytesIO(), io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(out, "w", compression) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return out.getvalue()


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of 256 MB of zeros, in 0.3 MB."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.pth"
    path.write_bytes(packed({"state_dict": {"a": torch.zeros(64 * MB)}}))
    assert path.stat().st_size < MB
    return path


@pytest.mark.parametrize("read", [read_weights, load_checkpoint, SemanticTree.load])
def test_a_file_that_unpacks_to_far_more_is_refused_in_one_line(read: Any, bomb: Path) -> None:
    with pytest.raises(ValueError, match=r"its 0\.\d MB would unpack to 268\.\d MB; wanted a file") as refusal:
        read(bomb)
    assert "bomb.pth" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_bomb_is_refused_before_anything_of_it_is_unpacked(bomb: Path) -> None:
    code = (
        "import resource, sys; from in21k.models.weights_file import read_weights; from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_weights(Path(sys.argv[1]))\n"
        "except ValueError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 64 * 1024  # KB; it would be 256 MB


def test_files_as_torch_writes_them_are_read(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(8 * MB), "b": torch.arange(3)}
    for zipped in (True, False):
        torch.save(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        read = read_weights(tmp_path / "w.pth")
        assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())
    (tmp_path / "packed.pth").write_bytes(packed({"a": torch.rand(MB)}))  # which gains little by it
    assert read_weights(tmp_path / "packed.pth")["a"].shape == (MB,)


@pytest.mark.parametrize(("num_bytes", "is_refused"), [(SPARE_BYTES, False), (SPARE_BYTES + MB, True)])
def test_a_small_file_may_unpack_to_16_mb(num_bytes: int, is_refused: bool) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(num_bytes))
    assert MOST_UNPACKED * len(out.getvalue()) < MB
    out.seek(3)
    if is_refused:
        with pytest.raises(ValueError, match="would unpack to"):
            check_unpacked(out)
    else:
        check_unpacked(out)
    assert out.tell() == 3


def test_a_checkpoint_in_memory_is_checked_too(bomb: Path) -> None:
    with pytest.raises(ValueError, match="would unpack to"):
        parse_checkpoint(bomb.read_bytes(), bomb)
