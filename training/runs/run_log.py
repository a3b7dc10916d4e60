"""log.jsonl as arrays, and curves short enough to be drawn: a run may have a million steps."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PLACES = ("step", "epoch")


class Validation(NamedTuple):
    """A validation after a step (1..), at the end of an epoch (0..): its line's `validation`."""

    step: int
    epoch: int
    values: dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunLog:
    """What a run wrote on its way, S steps of it.

    steps:   int64 (S,), 1.., rising.  epochs: int64 (S,), 0...
    scalars: by name (loss, lr, images_per_s, ...) float64 (S,); NaN where a step has none, or one that is not finite.
    """

    steps: NDArray[np.int64]
    epochs: NDArray[np.int64]
    scalars: dict[str, NDArray[np.float64]]
    validations: list[Validation]


def read_log(path: Path) -> RunLog:
    """Read log.jsonl, up to a line that is not JSON, where the run was killed. A missing file is an empty log.

    A step takes 8 bytes a scalar. Raises ValueError for lines that no run writes.
    """
    places = {name: array("q") for name in _PLACES}
    scalars: dict[str, array[float]] = {}
    validations: list[Validation] = []
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for text in file:
                try:
                    line: dict[str, Any] = json.loads(text)
                except ValueError:
                    break
                try:
                    _add(line, places, scalars, validations)
                except (AttributeError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}: no log of a run ({type(error).__name__}: {error})") from error
    num_steps = len(places["step"])
    for column in scalars.values():
        _fill(column, num_steps)
    steps, epochs = (np.array(places[name], np.int64) for name in _PLACES)
    return RunLog(steps, epochs, {name: np.array(column) for name, column in scalars.items()}, validations)


def _add(
    line: dict[str, Any],
    places: dict[str, array[int]],
    scalars: dict[str, array[float]],
    validations: list[Validation],
) -> None:
    if "validation" in line:
        validations.append(Validation(line["step"], line["epoch"], dict(line["validation"])))
        return
    num_before = len(places["step"])
    for name in _PLACES:
        places[name].append(line[name])
    for name, value in line.items():
        if name not in _PLACES:
            column = scalars.setdefault(name, array("d"))
            _fill(column, num_before)
            column.append(float("nan") if value is None else value)


def _fill(column: array[float], length: int) -> None:
    """Let the steps that lack a scalar have NaN."""
    column.extend([float("nan")] * (length - len(column)))


class Curve(NamedTuple):
    """A curve of P points, each of one or several values that lie side by side, all float64 (P,).

    places: the last place of each point.  means, lows, highs: of its values.
    """

    places: NDArray[np.float64]
    means: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]


def thin(places: NDArray[Any], values: NDArray[np.float64], num_points: int) -> Curve:
    """Make a curve of `num_points` points at most; values that are NaN count nowhere.

    >>> thin(np.array([1, 2, 3, 4]), np.array([1.0, 3.0, 5.0, 9.0]), 2).means.tolist()
    [2.0, 7.0]
    """
    held = ~np.isnan(values)
    places, values = places[held].astype(np.float64), values[held]
    num_points = min(num_points, len(values))
    if not num_points:
        return Curve(*(np.empty(0) for _ in range(4)))
    begins = np.linspace(0, len(values), num_points + 1).astype(np.int64)
    first, ends = begins[:-1], begins[1:]
    means = np.add.reduceat(values, first) / (ends - first)
    return Curve(places[ends - 1], means, np.minimum.reduceat(values, first), np.maximum.reduceat(values, first))
