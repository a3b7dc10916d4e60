"""How texts reach a terminal: names are escaped, logs go to stderr, colour where there is one."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
import unicodedata
from types import TracebackType
from typing import Any

import click

# Control characters (a terminal obeys C1 too), line and paragraph separators, marks that turn the direction of text,
# and the halves of surrogate pairs by which Python carries bytes that are not UTF-8.
_STEERING = "\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
OURS = "in21k"  # the name above those of our loggers
_IN_LINES = re.compile(f"[{_STEERING}]")
_IN_ONE_LINE = re.compile(f"[\n{_STEERING}]")


def in_one_line(text: str) -> str:
    """Return a text whose line breaks and control characters are escaped as Python writes them.

    >>> print(in_one_line("a swan" + chr(10) + ".jpg"))
    a swan\\n.jpg
    """
    return _IN_ONE_LINE.sub(_escaped, text)


def in_lines(text: str) -> str:
    """Return a text of several lines whose control characters are escaped."""
    return _IN_LINES.sub(_escaped, text)


def printable(value: Any) -> Any:
    """Return plain values (dicts, lists, text, numbers) in which every text, keys included, is one line."""
    if isinstance(value, str):
        return in_one_line(value)
    if isinstance(value, dict):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return list(map(printable, value)) if isinstance(value, list | tuple) else value


def say(line: str, *, err: bool = False) -> None:
    """Print one line, on stdout or stderr."""
    click.echo(in_one_line(line), err=err)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return a JSON document that escapes control characters, and those that stdout cannot encode."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"
    text = json.dumps(value, indent=indent, ensure_ascii=not is_utf8)
    return _IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def width(text: str) -> int:
    """Return how many columns of a terminal a line takes: East Asian letters two, combining marks none.

    >>> width("swan"), width("金毛犬"), width("e" + chr(0x301))
    (4, 6, 1)
    """
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


class LineFormatter(logging.Formatter):
    """Formats a record of ours as one line, with -v after its time and module; those of libraries keep line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        is_ours = record.name.partition(".")[0] == OURS and not record.exc_info
        text = (in_one_line if is_ours else in_lines)(super().format(record))
        is_verbose = logging.getLogger(OURS).level == logging.DEBUG
        return f"{record.relativeCreated / 1000:.2f} s {record.name}: {text}" if is_verbose else text


class _LogLines(logging.Handler):
    """Prints records on stderr; warnings in yellow where it is a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            text = self.format(record)
            is_warning = record.levelno >= logging.WARNING
            click.echo(click.style(text, fg="yellow") if is_warning else text, err=True, color=colour())
        except Exception:
            self.handleError(record)


def set_up_streams() -> None:
    """Send logs to stderr, and let stdout write what its encoding lacks as Python escapes it."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    handler = _LogLines()
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    set_verbosity(logging.INFO)


def set_verbosity(level: int) -> None:
    """Print our log records of a level and above; from WARNING on no progress either, nor what libraries log below."""
    logging.getLogger(OURS).setLevel(level)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogLines):
            handler.setLevel(level)


def is_quiet() -> bool:
    """Return whether progress is not shown."""
    return logging.getLogger(OURS).level > logging.INFO


def colour() -> bool | None:
    """Return False where nothing is coloured: under NO_COLOR (no-color.org) or TERM=dumb; None: where a terminal is."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that was not caught, as `sys.excepthook` does, with control characters escaped."""
    sys.stderr.write(in_lines("".join(traceback.format_exception(kind, error, trace))))


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
