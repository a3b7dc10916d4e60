"""How pixels are normalized: the one table of names, and the numbers behind what `normalize` may be."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

Channels = tuple[float, float, float]  # red, green and blue
MeanStd = tuple[Channels, Channels]  # of pixels in 0..1
# What `normalize` may be: a name, or mean and standard deviation of pixels in 0..1, each a number or one per channel.
Normalize = str | Sequence[float | Sequence[float]]

# Torchvision's and timm's constants for ImageNet, and pixels left in 0..1.
NORMALIZATIONS: dict[str, MeanStd] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def mean_std(normalize: Normalize | None) -> MeanStd:
    """Return the mean and the standard deviation of each channel; raises ValueError for anything else.

    >>> mean_std([0.5, [0.25, 0.25, 0.2]])
    ((0.5, 0.5, 0.5), (0.25, 0.25, 0.2))
    """
    if isinstance(normalize, str) and normalize in NORMALIZATIONS:
        return NORMALIZATIONS[normalize]
    try:
        mean, std = (_of_channels(value) for value in normalize or ())
    except (TypeError, ValueError):  # not a pair, not numbers, or not three of them
        pass
    else:
        if all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std):
            return mean, std
    raise ValueError(
        f"normalize is {normalize!r}; wanted {', '.join(NORMALIZATIONS)} or [mean, deviation] of pixels in 0..1 "
        "(mean 0 to 1, deviation more than 0 and at most 1), each a number or three"
    )


def short_normalize(numbers: MeanStd) -> str | list[float | list[float]]:
    """Return the shortest `normalize` from which `mean_std` makes these numbers.

    >>> short_normalize(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))), short_normalize(((0.5, 0.5, 0.5), (0.3, 0.3, 0.2)))
    ('unit', [0.5, [0.3, 0.3, 0.2]])
    """
    names = {pair: name for name, pair in NORMALIZATIONS.items()}
    return names.get(numbers) or [channels[0] if len(set(channels)) == 1 else list(channels) for channels in numbers]


def _of_channels(value: Any) -> Channels:
    red, green, blue = [value] * 3 if isinstance(value, (Real, str)) else value  # YAML reads 5e-1 as text
    return float(red), float(green), float(blue)
