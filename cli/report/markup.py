"""Pieces of a page: text made safe, numbers as people read them, tables, bars, figures."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

MAX_SHOWN = 160  # characters of a name or a message; archives can hold much longer ones


def printable(value: object) -> str:
    """Return a value's text without control characters, half characters and turns of the writing direction."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def text(value: object) -> str:
    """Return a value as HTML: whatever it holds is shown, and nothing of it is markup."""
    return html.escape(printable(value))


def short(value: object) -> str:
    """Return a value as HTML, cut where it is long."""
    shown = printable(value)
    return html.escape(shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 1]}…")


def embedded_json(content: object) -> str:
    """Return a `<script>` that holds data: inside it no `<` stands, so that nothing in the data can end it."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{data}</script>'


def number(count: float) -> str:
    """Return a whole number with its thousands set apart.

    >>> number(12358731)
    '12,358,731'
    """
    return f"{round(count):,}"


def brief(value: float) -> str:
    """Return a number in three digits or so.

    >>> brief(950), brief(12_400), brief(12_358_731), brief(2e9)
    ('950', '12.4k', '12.4M', '2G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def byte_size(num_bytes: float) -> str:
    """Return a size in decimal units.

    >>> byte_size(950), byte_size(23_400), byte_size(1_311_000_000_000)
    ('950 B', '23.4 kB', '1.31 TB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            return f"{float(f'{num_bytes / size:.3g}'):g} {unit}"
    return f"{num_bytes:.0f} B"


def percent(part: float, whole: float) -> str:
    """Return a share; what is not nothing, and what is not all, does not round to it.

    >>> percent(1, 3), percent(1, 1_000_000), percent(999_999, 1_000_000), percent(5, 5)
    ('33.3 %', '< 0.01 %', '> 99.9 %', '100 %')
    """
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.01:
        return "< 0.01 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    digits = 3 if share >= 1 else 2
    return f"{float(f'{share:.{digits}g}'):g} %"


def plural(count: int, one: str, several: str) -> str:
    """Return a count with its noun: `1 class`, `2 classes`."""
    return f"{number(count)} {one if count == 1 else several}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML; the first column to the left, the others to the right."""
    header = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    # It scrolls inside its own box where a phone is too narrow; a box that scrolls has to be reachable by keyboard.
    return (
        f'<div class="table" tabindex="0" role="group" aria-label="{text(head[0])}: table">'
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def bars(rows: Sequence[tuple[str, float, str]], whole: float, kinds: str | Sequence[str] = "kept") -> str:
    """Return a bar for each (label, count, what to say of the count); labels are HTML, a full bar is `whole`.

    kinds: the colour of all bars, or of each.
    """
    of_each = [kinds] * len(rows) if isinstance(kinds, str) else kinds
    items = "".join(
        f'<li><span class="bar-label">{label}</span>'
        f'<span class="bar-track"><span class="bar {kind}" style="width:{_share(count, whole)}%"></span></span>'
        f'<span class="bar-value">{note}</span></li>'
        for (label, count, note), kind in zip(rows, of_each, strict=True)
    )
    return f'<ul class="bars">{items}</ul>'


def _share(count: float, whole: float) -> str:
    return f"{100 * count / whole if whole else 0:.2f}"


def figure(title: str, body: str, caption: str, details: str = "", wide: bool = False) -> str:
    """Return a titled figure: its picture, a sentence on what one sees, and its numbers to open."""
    numbers = f"<details><summary>The numbers</summary>{details}</details>" if details else ""
    return (
        f'<figure class="card{" wide" if wide else ""}"><h3>{text(title)}</h3>{body}'
        f"<figcaption>{caption}</figcaption>{numbers}</figure>"
    )
