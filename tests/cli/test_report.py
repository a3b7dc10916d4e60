"""`in21k report`: the page as a file; in a browser see test_report_browser.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import run, run_json

SECTIONS = ["Counts", "The long tail", "The tree", "Images", "Sizes", "Changes", "Rejects", "Settings"]


@pytest.fixture(scope="module")
def page(prepared: Path) -> Path:
    """A report of the prepared data set."""
    out = prepared.parent / "report.html"
    run_json("report", prepared, out, "--images", 20)
    return out


def test_a_report_is_one_page_that_loads_nothing(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = run_json("report", prepared, out, "--images", 20)
    assert result == {"path": str(out), "bytes": out.stat().st_size, "sections": SECTIONS}
    page = out.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[^\s\"')]+", page) == []
    assert "http:" not in page
    assert "https:" not in page
    assert str(tmp_path) not in page
    assert str(prepared.parent) not in page
    assert page.count('<img src="data:image/jpeg;base64,') == 20


def test_the_same_command_says_that_it_is_done_and_another_is_refused(prepared: Path, page: Path) -> None:
    before = page.read_bytes()
    again = run("report", prepared, page, "--images", 20)
    assert again.exit_code == 0, again.output
    other = run("report", prepared, page, "--images", 20, "--seed", 1)
    assert other.exit_code == 2
    assert "report of other data or settings; give another name, or --overwrite" in other.stderr
    assert page.read_bytes() == before
    assert run("report", prepared, page, "--images", 20, "--seed", 1, "--overwrite").exit_code == 0
    assert page.read_bytes() != before


def test_a_file_that_is_no_report_is_never_overwritten(prepared: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("my own page")
    for words in ([], ["--overwrite"]):
        result = run("report", prepared, mine, *words)
        assert (result.exit_code, mine.read_text()) == (2, "my own page")
        assert "exists and is no report" in result.stderr


def test_several_folders_share_a_page_and_no_address(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert run_json("report", prepared, prepared, out, "--images", 0)["sections"] == SECTIONS * 2
    page = out.read_text(encoding="utf-8")
    addresses = re.findall(r'<section id="([^"]+)"', page)
    assert len(addresses) == len(set(addresses)) == 2 * len(SECTIONS)
    assert re.findall(r'href="#([^"]+)"', page) == addresses
    assert page.count("The tree map.") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["PREPARED", "PREPARED/report.html"], "lies inside a folder that it is about"),
        (["PREPARED", "PREPARED/.."], "is a folder; wanted the page to write"),
        (["PREPARED", "nowhere/report.html"], "there is no folder nowhere"),
        (["nowhere", "OUT"], "no such folder; wanted one that `in21k preprocess` made"),
        (["SHARDS", "OUT"], "is a shard set; reports show prepared data sets"),
        (["PREPARED", "OUT", "--images", "401"], "401 images: wanted 0 to 400"),
        (["OUT"], "Missing argument 'PATH...'"),
    ],
)
def test_a_mistake_ends_in_one_line(words: list[str], says: str, prepared: Path, shards: Path, tmp_path: Path) -> None:
    names = {"PREPARED": str(prepared), "SHARDS": str(shards), "OUT": str(tmp_path / "out.html")}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    result = run("report", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    result = run("report", tmp_path / "run", tmp_path / "out.html")
    assert result.exit_code == 2
    assert "is a run; reports show prepared data sets" in result.stderr
