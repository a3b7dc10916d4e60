"""Texts are plain English: short sentences, none of the phrases at which readers stopped, variables with a noun."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = {"cli.md", "python.md"}  # their text is that of help and docstrings
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]
FOLDERS = ("benchmarks", "cli", "datapipe", "docs", "models", "preprocess", "shards", "tests", "training")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_WORDS = 30
NO_NOUNS = {"asked", "each", "found", "said"}  # names that say how a value came, not what it is
STIFF = re.compile(
    r"(?<![Tt]here )\b((?:is|are) no(?! longer| more\b)|what is no|which is said|so said|of which none"
    r"|gains? \w+ nothing)\b"
)


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


def variables(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of everything that a module's code binds: variables and arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of a module's docstrings, messages and comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_variables_and_texts_of_code_are_told_apart() -> None:
    source = 'def area(width):  # in pixels\n    """Square it."""\n    height = f"{width} high"\n'
    assert sorted(variables(source)) == [(1, "width"), (3, "height")]
    assert sorted(texts(source)) == [(1, "# in pixels"), (2, "Square it."), (3, " high")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_variable_bears_the_noun_of_its_value(path: Path) -> None:
    assert [(line, name) for line, name in variables(path.read_text()) if name in NO_NOUNS] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_of_code_is_stiff(path: Path) -> None:
    stiff = [(line, text) for line, text in texts(path.read_text()) if STIFF.search(text)]
    assert [place for place in stiff if path != Path(__file__).resolve() or place[1] != STIFF.pattern] == []
