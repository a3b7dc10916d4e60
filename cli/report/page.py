"""The page of a report: put together, self-contained, and with a fingerprint of what it was made from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Protocol

DATA = Path(__file__).parent / "data"
GENERATOR = '<meta name="generator" content="in21k report">'
TOLD_BY = ("dataset.json", "config.yaml", "log.jsonl", "metrics.json", "nonfinite.json")  # of what a folder holds
_HEAD_BYTES = 1024


class Section(Protocol):
    """A part of a page."""

    @property
    def name(self) -> str:
        """Its address in the page: letters and `-`."""
        ...

    @property
    def title(self) -> str:
        """Its title, plain text."""
        ...

    @property
    def html(self) -> str:
        """What stands below the title."""
        ...


class FolderReport(Protocol):
    """What a folder renders of itself, whichever package does so."""

    @property
    def kind(self) -> str:
        """What it is, plain text."""
        ...

    @property
    def subject(self) -> str:
        """What it is of, plain text."""
        ...

    @property
    def sections(self) -> Sequence[Section]:
        """Its parts, in their order."""
        ...

    @property
    def styles(self) -> Sequence[str]:
        """CSS that its parts need; equal ones stand in the page once."""
        ...

    @property
    def scripts(self) -> Sequence[str]:
        """JavaScript that its parts need; equal ones stand in the page once."""
        ...


def page_fingerprint(folders: Sequence[Path], files: Sequence[Path], settings: dict[str, Any]) -> str:
    """Return 16 hex digits that differ where a page would be of other folders, files or settings (JSON values).

    Folders are known by what is small in them: equal fingerprints do not promise equal pages.
    """
    told = [{name: _digest(path / name) for name in TOLD_BY if (path / name).is_file()} for path in folders]
    facts = [_version(), told, [_digest(path) for path in files], settings]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_report(path: Path) -> bool:
    """Tell whether a file is a page of ours."""
    return GENERATOR.encode() in _head(path)


def has_fingerprint(path: Path, fingerprint: str) -> bool:
    """Tell whether a page has that fingerprint."""
    return _fingerprint_line(fingerprint).encode() in _head(path)


def _fingerprint_line(fingerprint: str) -> str:
    return f'<meta name="in21k-fingerprint" content="{fingerprint}">'


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def assemble(folders: Sequence[FolderReport], fingerprint: str) -> str:
    """Return the page of what several folders render: self-contained, and nothing but its own scripts can run in it."""
    scripts = _once(script for folder in folders for script in folder.scripts)
    styles = _once(
        [(DATA / "page.css").read_text(encoding="utf-8"), *(style for folder in folders for style in folder.styles)]
    )
    titles = [f"{folder.subject} – {folder.kind.lower()}" for folder in folders]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    several = len(folders) > 1
    return Template((DATA / "page.html").read_text(encoding="utf-8")).substitute(
        fingerprint=_fingerprint_line(fingerprint),
        title=escape(", ".join(titles)),
        style="".join(styles),
        script_hashes=" ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'",
        heading=f'<p class="kind">{len(folders)} folders</p>' if several else _heading(folders[0]),
        contents="".join(_links(folder, place, several) for place, folder in enumerate(folders)),
        sections="\n".join(_folder(folder, place, several) for place, folder in enumerate(folders)),
        footer=f"Made by <code>in21k report</code> {_version()}. One file: it loads nothing and tells nobody.",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _once(texts: Iterable[str]) -> list[str]:
    """Return the texts that are not empty, each once, in their order."""
    return list(dict.fromkeys(text for text in texts if text))


def _address(section: Section, place: int) -> str:
    return section.name if place == 0 else f"{section.name}-{place + 1}"


def _heading(folder: FolderReport) -> str:
    return f'<p class="kind">{escape(folder.kind)}</p><h1>{escape(folder.subject)}</h1>'


def _links(folder: FolderReport, place: int, several: bool) -> str:
    return (f"<li><strong>{escape(folder.subject)}</strong></li>" if several else "") + "".join(
        f'<li><a href="#{_address(section, place)}">{escape(section.title)}</a></li>' for section in folder.sections
    )


def _folder(folder: FolderReport, place: int, several: bool) -> str:
    heading = f'<div class="subject">{_heading(folder)}</div>' if several else ""
    return heading + "\n".join(
        f'<section id="{_address(section, place)}"><h2>{escape(section.title)}</h2>'
        f'<div class="cards">{section.html}</div></section>'
        for section in folder.sections
    )


def _version() -> str:
    from importlib.metadata import version

    return version("in21k")
