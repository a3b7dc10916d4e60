"""The settings of a training run: what they mean, what they may be, and where their values come from."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

RECIPES = Path(__file__).parent / "recipes"
# Beyond these a number is a slip of the finger.
_MOST = {
    "batch_size": 1_000_000,
    "epochs": 1_000_000,
    "validate_every_epochs": 1_000_000,
    "max_steps": 10**12,
    "image_size": 8192,
    "workers": 1024,
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that shapes a training run beside the data; raises ValueError where a value makes no sense."""

    model: str = "resnet50"
    """A timm architecture."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """What else the architecture takes, as {drop_path_rate: 0.1}."""
    init: str | None = None
    """A file of weights to begin with (see `in21k.models.load_weights`); None: random weights."""
    loss: Literal["semantic", "cross-entropy"] = "semantic"
    """Semantic softmax over the tree, or one softmax over all classes."""
    label_smoothing: float = 0.2
    """The share of the target that is spread evenly over the classes, 0 <= x < 1."""
    backend: str = "auto"
    """The loader's backend (`auto`, `dali_gpu`, `dali_cpu`, `opencv`, `torch`); the loader checks it."""
    augment: Literal["none", "miil", "inception", "inception-ra"] = "none"
    """`none`: stretch to image_size; `miil`: then cutout and RandAugment; `inception`: random crop and flip;
    `inception-ra`: then RandAugment."""
    max_bad_rate: float = 0.001
    """An epoch stops past this share of corrupt samples; below it others stand in for them. 0 <= x < 1."""
    normalize: Literal["unit", "imagenet"] = "unit"
    """`unit`: pixels 0..1; `imagenet`: less ImageNet's mean, over its standard deviation."""
    workers: int | None = None
    """Decode threads or processes per rank; None: as the backend sees fit. Shapes no result."""
    image_size: int | None = None
    """Side of the square images in pixels; None: the size that the shards hold."""
    batch_size: int = 64
    """Images per rank and step."""
    epochs: int = 80
    """How often every image is seen."""
    max_steps: int | None = None
    """Stop after this many steps, if that comes before `epochs`; the schedule then spans these."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """`adam` has its weight decay in the gradient (L2), `adamw` apart from it."""
    lr: float = 3e-4
    """The peak learning rate."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    weight_decay: float = 0.0
    """Applies to tensors of more than one dimension only."""
    schedule: Literal["one-cycle"] = "one-cycle"
    """`one-cycle`: from lr/20 up to lr and down to nearly 0, both along a cosine."""
    warmup: float = 0.1
    """The share of all steps on which the learning rate climbs, 0 <= x <= 1."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; `auto`: off on a CPU, bf16 on a GPU."""
    channels_last: bool = False
    """Lay images and weights out channels last; convolutions on a GPU in half precision like that."""
    clip_grad: float | None = None
    """The largest norm of the whole gradient; None: not clipped."""
    validate_every_epochs: int = 1
    """Validate after every so many epochs, and after the last."""
    seed: int = 0
    """Of weights, order of samples, and every draw."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time; slower on a GPU."""

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(_bad(name, getattr(self, name), "one of " + ", ".join(get_args(hint))))
        for name in ("batch_size", "epochs", "validate_every_epochs", "max_steps", "image_size", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(_bad(name, getattr(self, name), "at least 1"))
        for name in ("lr", "clip_grad"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise ValueError(_bad(name, getattr(self, name), "more than 0"))
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(_bad("weight_decay", self.weight_decay, "at least 0"))
        for name in ("label_smoothing", "momentum", "max_bad_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(_bad(name, getattr(self, name), "at least 0 and less than 1"))
        if not 0 <= self.warmup <= 1:
            raise ValueError(_bad("warmup", self.warmup, "a share of the steps, 0 to 1"))


def resolve_settings(
    recipe: str | None = None, sets: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> TrainSettings:
    """Put a run's settings together: defaults, under a recipe, under what was asked for one by one.

    recipe: a name in `training/recipes`, or a YAML file: one flat mapping of settings (a run's config.yaml is one).
    sets:   `key=value` each, the value in YAML (`lr=3e-4`, `model_args={img_size: 64}`, `max_steps=null`).
    flags:  settings by name as command-line flags give them; None: the flag was not given.

    Raises ValueError for an unknown recipe or setting, a value of another kind, and a setting that is asked for twice
    with different values.
    """
    asked = _known({name: value for name, value in (flags or {}).items() if value is not None}, "the flags")
    for text in sets:
        name, given, value = text.partition("=")
        if not given:
            raise ValueError(f"--set {text}: has no value; wanted --set KEY=VALUE")
        converted = _known({name.strip(): _yaml(value, f"--set {text}")}, f"--set {text}")
        for key in asked.keys() & converted.keys():
            if asked[key] != converted[key]:
                raise ValueError(f"{key} is asked for twice, as {asked[key]!r} and as {converted[key]!r}; give it once")
        asked |= converted
    return TrainSettings(**{**(read_recipe(recipe) if recipe else {}), **asked})


def list_recipes() -> list[str]:
    """Return the names of the recipes that in21k ships."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe by name or of a YAML file; raises ValueError where it is neither."""
    path = RECIPES / f"{recipe}.yaml" if recipe in list_recipes() else Path(recipe)
    if not path.is_file():
        raise ValueError(
            f"unknown recipe {recipe!r}{_nearest(recipe, list_recipes())}; wanted one of them, or a YAML file"
        )
    try:
        content = _yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as a recipe ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no settings; wanted lines of `name: value`")
    # `data` is what a finished run was trained on, in its config.yaml; it is no setting.
    return _known({str(name): value for name, value in content.items() if name != "data"}, str(path))


def _known(values: Mapping[str, object], where: str) -> dict[str, Any]:
    hints = _hints()
    for name in values:
        if name not in hints:
            raise ValueError(f"{where}: unknown setting {name!r}{_nearest(name, list(hints))}")
    return {name: _convert(name, value, hints[name]) for name, value in values.items()}


def _hints() -> dict[str, Any]:
    hints = get_type_hints(TrainSettings)
    return {each.name: hints[each.name] for each in fields(TrainSettings)}


def _convert(name: str, value: object, hint: Any) -> Any:
    """Make of a YAML value one of the setting's kind (None where it may be); raises ValueError where it is none."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        # YAML 1.1 reads a bare `off` as False.
        return "off" if value is False and "off" in get_args(kind) else value
    if get_origin(kind) is dict:
        kind = dict
    try:
        if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)  # YAML reads 3e-4, which has no point, as text
        if kind is int and isinstance(value, (float, str)) and float(value).is_integer():
            return int(float(value))
    except ValueError:
        pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "{name: value}"}
        raise ValueError(_bad(name, value, wanted[kind]))
    return value


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not readable as YAML ({str(error).splitlines()[0]})") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    return f"; known: {', '.join(nearest)}"


def _bad(name: str, value: object, wanted: str) -> str:
    return f"{name} is {value!r}; wanted {wanted} (--set {name}=...)"
