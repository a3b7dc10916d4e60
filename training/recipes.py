"""Where a run's settings come from: the defaults, changed by a recipe, changed by single settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..datapipe.settings import LoaderSettings
from .runs.run_folder import WRITER
from .settings import TrainSettings, known_settings, nearest

RECIPES = Path(__file__).parent / "recipes"
# Settings that have no effect without another one: of the teacher, and of the initial weights.
DEPENDENT_SETTINGS = {"teacher": ("kd_weight", "kd_reduction", "kd_temperature"), "init": ("init_head", "init_partial")}


class Resolved(NamedTuple):
    """Settings, and by the name of each where its value comes from: `default`, `recipe miil`, `run run/config.yaml`,
    `--set`."""

    settings: TrainSettings
    sources: dict[str, str]


class _Recipe(NamedTuple):
    extends: str | None
    """The recipe that it extends, as `read` takes it."""
    values: dict[str, Any]
    source: str
    """Where its values come from, in words."""


def resolve_settings(recipe: str | None = None, settings: Mapping[str, object] | None = None) -> TrainSettings:
    """Return the settings of a run: the defaults, changed by a recipe, changed by single settings.

    recipe:   a name in `training/recipes`, or a YAML file: one flat mapping of settings (a run's config.yaml is one).
              Its `extends` may name another recipe that this one changes, one that extends none itself.
    settings: single settings by name.

    Raises ValueError for an unknown recipe or setting, for a value of another kind, and for a setting that has no
    effect because no teacher or no initial weights are named.
    """
    return resolve_with_sources(recipe, settings).settings


def resolve_with_sources(recipe: str | None = None, settings: Mapping[str, object] | None = None) -> Resolved:
    """Do as `resolve_settings`, and name for every setting the source of its value."""
    sources = dict.fromkeys((setting.name for setting in fields(TrainSettings)), "default")
    layers = _layers(recipe) if recipe else []
    for layer in layers:
        sources |= dict.fromkeys(layer.values, layer.source)
    single = known_settings(settings or {}, "settings")
    sources |= dict.fromkeys(single, "--set")
    in_turn = [*(layer.values for layer in layers), single]
    resolved = TrainSettings(**{name: value for values in in_turn for name, value in values.items()})
    _check_dependent(resolved, in_turn)
    return Resolved(resolved, sources)


def parse_sets(
    sets: Sequence[str],
    flags: Mapping[str, object] | None = None,
    declared: type[LoaderSettings] = TrainSettings,
) -> dict[str, Any]:
    """Return the settings that a command line names.

    sets:     `key=value` each, the value in YAML (`lr=3e-4`, `model_args={img_size: 64}`, `max_steps=null`, `ema=off`).
    flags:    settings by name as flags of their own give them; None: the flag was not given.
    declared: the class that declares them.

    Raises ValueError for an unknown setting, a value of another kind, and two values for one setting.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    settings = known_settings(given, "the flags", declared=declared)
    for text in sets:
        for name, value in _read_set(text, declared).items():
            if settings.setdefault(name, value) != value:
                raise ValueError(f"{name} is given twice, as {settings[name]!r} and as {value!r}; give it once")
    return settings


def list_recipes() -> list[str]:
    """Return the names of the recipes that in21k ships."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def describe_recipes() -> dict[str, str]:
    """Return by name what each recipe that in21k ships is for: its first line, a comment."""
    return {
        name: (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for name in list_recipes()
    }


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe by name or of a YAML file, with those that it extends; ValueError for neither."""
    return {name: value for layer in _layers(recipe) for name, value in layer.values.items()}


def _check_dependent(settings: TrainSettings, in_turn: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for a setting without effect, unless its layer, or a later one, sets its base to off."""
    for base, names in DEPENDENT_SETTINGS.items():
        idle: set[str] = set()
        for layer in in_turn:
            idle = set() if base in layer else idle | layer.keys()
        for name in names:
            value = getattr(settings, name)
            if getattr(settings, base) is None and name in idle and value != getattr(TrainSettings, name):
                raise ValueError(
                    f"{name} is {value!r} and no {base} is set; give --set {base}=..., or leave {name} out "
                    f"(where a recipe has it: --set {base}=off)"
                )


def _layers(recipe: str) -> list[_Recipe]:
    """Return a recipe, after the one that it extends."""
    changes = _read(recipe)
    if changes.extends is None:
        return [changes]
    base = _read(changes.extends)
    if base.extends is not None:
        raise ValueError(
            f"recipe {recipe} extends {changes.extends}, which extends {base.extends}; a recipe may extend one that "
            "extends none, so let it extend that and repeat the few lines between"
        )
    return [base, changes]


def _read(recipe: str) -> _Recipe:
    path = RECIPES / f"{recipe}.yaml" if recipe in list_recipes() else Path(recipe)
    if not path.is_file():
        raise ValueError(
            f"unknown recipe {recipe!r}{nearest(recipe, list_recipes())}; wanted one of `in21k config list`, or a YAML "
            "file"
        )
    try:
        content = _yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as a recipe ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no settings; wanted lines of `name: value`")
    # `data` in a run's config.yaml describes what it is trained on; it is not a setting.
    source = f"{'run' if 'data' in content else 'recipe'} {recipe}"
    values = {str(name): value for name, value in content.items() if name not in ("data", WRITER)}
    extends = values.pop("extends", None)
    if extends is not None and not isinstance(extends, str):
        raise ValueError(f"{path}: extends is {extends!r}; wanted the name of one recipe, or a YAML file")
    if extends is not None and extends not in list_recipes():
        extends = str(path.parent / extends)
    return _Recipe(extends, known_settings(values, str(path), also=("extends",)), source)


def _read_set(text: str, declared: type[LoaderSettings]) -> dict[str, Any]:
    name, _, value = text.partition("=")
    if not value.strip():
        raise ValueError(f"--set {text}: has no value; wanted --set KEY=VALUE, off where there is to be none")
    return known_settings({name.strip(): _yaml(value, f"--set {text}")}, f"--set {text}", declared=declared)


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a name that stands twice in a mapping; by itself the last would win in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it stands; raises YAMLError."""
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"{key.value} stands in line {seen[key.value]} and again in line {line}; keep one")
            seen[str(key.value)] = line
        return node


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not readable as YAML ({str(error).splitlines()[0]})") from error
