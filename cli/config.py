"""`in21k config`: recipes, the settings of a training, and their sources."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click

from .options import emit, json_option

WIDTH = 110


@click.group()
def config() -> None:
    """Show recipes, and the settings of a training."""


@config.command("show")
@click.argument("recipe", required=False)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--explain", is_flag=True, help="Also explain each setting.")
@json_option
def show(recipe: str | None, sets: tuple[str, ...], explain: bool, as_json: bool) -> None:
    """Print the settings of a training with RECIPE, and their sources.

    RECIPE is a recipe by name, a YAML file of settings, or a run's config.yaml; without it, the defaults.
    """
    from dataclasses import asdict

    from ..training.recipes import parse_sets, resolve_with_sources
    from ..training.settings import setting_meanings

    settings, sources = resolve_with_sources(recipe, parse_sets(sets))
    meanings = setting_meanings()
    rows = {
        name: {"value": value, "source": sources[name], "meaning": meanings[name]}
        for name, value in asdict(settings).items()
    }
    emit(
        {"recipe": recipe, "settings": rows},
        lambda result: _render(result["settings"], explain=explain),
        as_json=as_json,
    )


@config.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Print the recipes of in21k, and what each is for."""
    from ..training.recipes import describe_recipes

    recipes = describe_recipes()
    width = max(map(len, recipes))
    text = "\n".join(f"{name:{width}}  {purpose}" for name, purpose in recipes.items())
    emit(recipes, text, as_json=as_json)


def _render(rows: dict[str, dict[str, Any]], *, explain: bool) -> str:
    """Return aligned lines of name, value (as `--set` takes it) and source; with `explain` the meaning below each."""
    values = {name: _value(row["value"]) for name, row in rows.items()}
    name_width, value_width = (max(map(len, column)) for column in (values, values.values()))
    lines: list[str] = []
    for name, row in rows.items():
        lines.append(f"{name:{name_width}}  {values[name]:{value_width}}  {row['source']}")
        if explain:
            lines += textwrap.wrap(row["meaning"], WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
