"""Checking that JSON has what is read of it, before anything is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

MAX_COUNT = 1 << 62


class Kind(NamedTuple):
    """A kind of JSON value, as messages call it, and what tells it from others."""

    name: str
    fits: Callable[[Any], bool]


class Each(NamedTuple):
    """A JSON object of any keys, each value of one shape."""

    shape: Shape


# An object with at least these keys, a list of one shape, an object of any keys, or a single value.
Shape: TypeAlias = "dict[str, Shape] | list[Shape] | Each | Kind"

TEXT = Kind("text", lambda value: isinstance(value, str))
COUNT = Kind("a whole number from 0 to 2^62", lambda value: type(value) is int and 0 <= value <= MAX_COUNT)
INDEX = Kind("a whole number, -1 or more", lambda value: type(value) is int and value >= -1)
NUM_SAMPLES = Kind("a whole number from 1 to 2^31 - 1", lambda value: type(value) is int and 0 < value < 1 << 31)
ANY = Kind("any value", lambda _: True)
SHA256 = Kind("64 hex digits", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)))


def check_shape(value: Any, shape: Shape, place: str = "") -> None:
    """Raise ValueError, naming the place in the JSON, for the first part of a value that has another shape.

    >>> check_shape({"counts": {"train": "many"}}, {"counts": Each(COUNT)})
    Traceback (most recent call last):
    ...
    ValueError: counts.train is 'many'; wanted a whole number from 0 to 2^62
    """
    if isinstance(shape, Kind):
        if not shape.fits(value):
            raise _differs(value, shape.name, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _differs(value, "a list", place)
        for number, part in enumerate(value):
            check_shape(part, shape[0], f"{place}[{number}]")
    else:
        if not isinstance(value, dict):
            raise _differs(value, "an object", place)
        if isinstance(shape, dict) and (missing := shape.keys() - value.keys()):
            raise ValueError(f"{place or 'it'} lacks {min(missing)}")
        parts = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
        for key, part in parts.items():
            check_shape(value[key], part, f"{place}.{key}" if place else key)


def _differs(value: Any, wanted: str, place: str) -> ValueError:
    return ValueError(f"{place or 'it'} is {repr(value)[:60]}; wanted {wanted}")
