"""doctor: what it finds in an environment, and what it advises."""

from __future__ import annotations

import json
import re
from importlib import metadata
from typing import Any

import PIL
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from in21k.cli import doctor as doctor_module
from in21k.cli.main import cli
from in21k.datapipe import machine


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, ["doctor", *words])
    assert result.exit_code == 0
    return result.stdout


def found(monkeypatch: pytest.MonkeyPatch, imported: str, /, **installed: str) -> dict[str, Any]:
    """Run the command where `import PIL` gives a version, and these distributions alone are installed."""
    monkeypatch.setattr(PIL, "__version__", imported)
    monkeypatch.setattr(doctor_module, "_version", lambda name: installed.get(name.replace("-", "_")))
    return json.loads(run("--json"))


def test_plain_pillow_is_told_with_the_way_to_pillow_simd(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, "13.0.0", pillow="13.0.0")
    assert result["pillow_is_pillow_simd"] is False
    assert any("`make simd`" in line for line in result["advice"])
    assert "Pillow is pillow-simd        no" in run()


def test_pillow_simd_is_told_and_needs_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, "12.1.1.post0", pillow_simd="12.1.1.post0")
    assert result["pillow_is_pillow_simd"] is True
    assert not any("make simd" in line for line in result["advice"])
    assert "Pillow is pillow-simd        yes" in run()


def test_both_on_the_same_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, "12.1.1.post0", pillow="13.0.0", pillow_simd="12.1.1.post0")
    assert any("both installed" in line for line in result["advice"])


def test_one_build_of_dali_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum("dali" in line for line in found(monkeypatch, "13.0.0")["advice"]) == 3
    with_one = found(monkeypatch, "13.0.0", nvidia_dali_cuda120="2.4.0")
    assert not any("dali" in line for line in with_one["advice"])


def test_it_names_every_package_that_the_project_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Requirement(item) for item in metadata.requires("in21k") or []]
    own = [item for item in wanted if not (item.marker and re.search("extra == .(dev|bench)", str(item.marker)))]
    listed = found(monkeypatch, "13.0.0")["packages"]
    assert {item.name for item in own} <= set(listed)
    for extra in {str(item.marker) for item in own if item.marker}:
        assert any(extra.split('"')[1] in line for line in found(monkeypatch, "13.0.0")["advice"]), extra


def test_it_tells_the_size_of_shared_memory_and_what_too_little_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "shared_memory", lambda: (2**26, 2**25))
    monkeypatch.setattr(machine, "load", lambda: {"threads": 4, "load": 0.5, "cores": 4})
    result = found(monkeypatch, "13.0.0")
    assert result["shared_memory_bytes"] == 2**26
    (advice,) = [line for line in result["advice"] if "/dev/shm" in line]
    assert advice.startswith("/dev/shm has 67 MB, 34 free; backends torch and webdataset need 308 MB for batches")
    assert "--shm-size" in advice
    assert re.search(r"^shared memory \(/dev/shm\) +67 MB, 34 free$", run(), re.MULTILINE)
    monkeypatch.setattr(machine, "shared_memory", lambda: (2**34, 2**34))
    assert not any("/dev/shm" in line for line in found(monkeypatch, "13.0.0")["advice"])
    monkeypatch.setattr(machine, "shared_memory", lambda: None)
    assert any(line.startswith("no /dev/shm; backends torch") for line in found(monkeypatch, "13.0.0")["advice"])


def test_it_tells_threads_and_load_and_the_way_out_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load", lambda: {"threads": 8, "load": 7.25, "cores": 8})
    result = found(monkeypatch, "13.0.0")
    assert (result["threads"], result["load"], result["cores"]) == (8, 7.25, 8)
    assert any(line.startswith("8 OpenMP threads, load 7.2 on 8 cores: ") for line in result["advice"])
    assert re.search(r"^OpenMP threads of torch +8$", run(), re.MULTILINE)
    for threads, load in ((8, 1.0), (1, 7.25)):
        monkeypatch.setattr(machine, "load", lambda: {"threads": threads, "load": load, "cores": 8})  # noqa: B023
        assert not any("OMP_NUM_THREADS" in line for line in found(monkeypatch, "13.0.0")["advice"])
