"""The pages of docs/: their commands and snippets run as they stand, in the order of the index (`make test-slow`)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FOLDERS = ("cli", "datapipe", "models", "preprocess", "shards", "training")
PAGES = re.findall(r"^\| \[\w+\]\((\w+\.md)\)", (DOCS / "README.md").read_text(), re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {page: BLOCK.findall((DOCS / page).read_text()) for page in PAGES}


def test_the_index_has_every_page() -> None:
    assert sorted(PAGES) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


def test_every_page_leads_to_the_next_one() -> None:
    dead_ends = [page for page in PAGES if not re.search(r"^(Next|.*Next): ", (DOCS / page).read_text(), re.MULTILINE)]
    assert dead_ends == ["contributing.md"]


def test_the_pages_that_are_made_from_the_code_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (DOCS / "cli.md").read_text() == generate.cli_page(), "stale: run `make docs`"
    assert (DOCS / "python.md").read_text() == generate.python_page(), "stale: run `make docs`"


def test_troubleshooting_is_about_messages_that_exist() -> None:
    root = DOCS.parent
    sources = [path.read_text() for name in FOLDERS for path in (root / name).rglob("*.py")]
    source = re.sub(r'"\s*\n?\s*f?"', "", "\n".join(sources))  # a message's parts, joined
    cells = re.findall(r"^\| (`.*?`) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    fragments = [fragment for cell in cells for fragment in re.findall(r"`([^`]+)`", cell)]
    assert len(fragments) > 20
    assert [fragment for fragment in fragments if fragment not in source] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder in which a reader follows the pages."""
    return tmp_path_factory.mktemp("docs")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]])
def test_a_page_runs(page: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for language, text in BLOCKS[page]:
        words = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
