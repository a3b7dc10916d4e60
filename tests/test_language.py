"""README and docs are plain English: short sentences, and none of the phrases at which readers stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = {"cli.md", "python.md"}  # their text is that of help and docstrings
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]
MAX_WORDS = 30
STIFF = re.compile(r"\b(is no|are no|what is no|which is said|so said|of which none|gains? \w+ nothing)\b")


def sentences(markdown: str) -> list[str]:
    """Return the sentences of a page's prose; code blocks are left out, a table's cell is a text of its own."""
    text = re.sub(r"^```.*?^```", "\n\n", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "CODE", text)
    blocks = re.split(r"\n\s*\n|\n(?=[-#>|] ?)|\n(?=\d+\. )|\|", text)
    return [
        " ".join(sentence.split())
        for block in blocks
        for sentence in re.split(r"(?<=[.:;!?])\s+", block.lstrip("-#> 0123456789."))
        if sentence.strip()
    ]


def test_sentences_are_told_apart() -> None:
    page = (
        "# Title\n\nOne thing. Another: `a. b. c`\nwith a [link. here](x).\n\n```sh\nno. code\n```\n- an item\n- more"
    )
    assert sentences(page) == ["Title", "One thing.", "Another:", "CODE with a link.", "here.", "an item", "more"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_is_long(page: Path) -> None:
    assert [sentence for sentence in sentences(page.read_text()) if len(sentence.split()) > MAX_WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_phrase_is_stiff(page: Path) -> None:
    assert [sentence for sentence in sentences(page.read_text()) if STIFF.search(sentence)] == []
