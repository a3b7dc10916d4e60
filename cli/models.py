"""`in21k models`: the networks, and those with ImageNet-21K weights."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .models_zoo import render_zoo, zoo_rows
from .options import PATH_OR_URL, emit, json_option, table
from .progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import PublishedWeights


@click.command()
@click.argument("pattern", required=False)
@click.option("--published", is_flag=True, help="Only those with published ImageNet-21K weights.")
@click.option("--data", type=PATH_OR_URL, help="Shards: show which weights know all their classes, and can teach.")
@click.option("--zoo", is_flag=True, help="The published table of semantic softmax; PATTERN: where files of it lie.")
@json_option
def models(pattern: str | None, published: bool, data: Path | str | None, zoo: bool, as_json: bool) -> None:
    """List the networks that `--model` takes, and the weights that `--teacher` takes.

    PATTERN is a part of the name (`resnet`) or a shell pattern ('resnet*'; '*' for all, which takes a minute). The
    default is every network with published ImageNet-21K weights. A name with a dot names such weights, which timm
    fetches, and their label space is shown (fall11p and winter21p are ImageNet-21K-P's).

    --zoo lists the networks that were published with semantic softmax, with their figures and the names of their files.
    A file of them in the folder PATTERN (default: here) is recognised by its keys and shapes, whatever its name.
    """
    if zoo:
        if published or data:
            raise ValueError("--zoo lists one table; leave --published and --data out")
        emit(zoo_rows(Path(pattern or ".")), render_zoo, as_json=as_json)
        return
    from ..models import list_models, pretrained_21k
    from ..models.stats import count_parameters

    weights = [one for one in pretrained_21k() if _matches(one.name, pattern)]
    architectures = [] if published else list_models(pattern) if pattern else [_base(one.name) for one in weights]
    if not weights and not architectures:
        raise ValueError(
            f"no network's name matches {pattern!r}{' among the published ones' if published else ''}; "
            "`in21k models` lists those with ImageNet-21K weights, `in21k models '*'` all"
        )
    wnids = _wnids(data) if data else None
    names = sorted({*architectures, *(one.name for one in weights)})
    published_weights = {one.name: one for one in weights}
    rows: list[dict[str, Any]] = []
    with ProgressLine("models") as line:
        for place, name in enumerate(names):
            line.show(name, place / len(names))
            one = published_weights.get(name)
            num_parameters = count_parameters(name, one.num_classes if one else None)
            rows.append(_describe(name, one, wnids) | {"num_parameters": num_parameters})
    emit(rows, lambda rows: _render(rows, teaches=wnids is not None), as_json=as_json)


def _base(name: str) -> str:
    return name.partition(".")[0]


def _matches(name: str, pattern: str | None) -> bool:
    """Tell whether weights are meant: by their whole name, or by their architecture's."""
    if not pattern:
        return True
    if not set("*?[") & set(pattern):
        return pattern in name
    return fnmatchcase(name, pattern) or fnmatchcase(_base(name), pattern)


def _wnids(data: Path | str) -> Sequence[str]:
    from ..shards import open_dataset

    return open_dataset(data).tree.wnids


def _describe(name: str, weights: PublishedWeights | None, wnids: Sequence[str] | None) -> dict[str, Any]:
    from ..models import label_space_of
    from ..models.zoo import input_size_of

    row: dict[str, Any] = {
        "name": name,
        "architecture": _base(name),
        "input_size": list(weights.input_size if weights else input_size_of(name)),
        "label_space": weights.label_space if weights else None,
        "num_classes": weights.num_classes if weights else None,
        "source": weights.source if weights else None,
    }
    if wnids is not None:
        indices = label_space_of(weights.num_classes).indices(wnids) if weights else None
        row["num_classes_lacking"] = None if indices is None else int((indices < 0).sum())
    return row


def _render(rows: list[dict[str, Any]], *, teaches: bool) -> str:
    lines = [["name", "params (M)", "pixels", "classes", "label space", *(["teaches this data"] if teaches else [])]]
    for row in rows:
        num_classes, lacking = row["num_classes"], row.get("num_classes_lacking")
        answer = "" if lacking is None else f"lacks {lacking:,} classes" if lacking else "yes"
        cells = [row["name"], f"{row['num_parameters'] / 1e6:.1f}", str(row["input_size"][-1])]
        cells += [f"{num_classes:,}" if num_classes else "", row["label_space"] or ""]
        lines.append(cells + ([answer] if teaches else []))
    return table(lines)
