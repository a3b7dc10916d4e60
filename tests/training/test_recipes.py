"""Recipes: what they hold, how one extends another, and where each value comes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from in21k.training import TrainSettings, list_recipes, resolve_settings
from in21k.training.optim import scaled_lr
from in21k.training.recipes import describe_recipes, parse_sets, read_recipe, resolve_with_sources
from in21k.training.runs.run_folder import run_config

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a recipe, and return its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_flag_and_a_set_may_agree_but_not_differ() -> None:
    assert parse_sets(["epochs=3"], {"epochs": 3, "model": None}) == {"epochs": 3}
    with pytest.raises(ValueError, match="epochs is given twice, as 4 and as 3"):
        parse_sets(["epochs=3"], {"epochs": 4})


def test_a_single_setting_wins_over_the_recipe_and_that_over_the_one_it_extends(write: Write) -> None:
    write("base.yaml", "model: resnet18\nlr: 3e-3\nepochs: 7\namp: off\n")
    mine = write("mine.yaml", "extends: base.yaml\nlr: 0.5\nseed: 3\n")
    settings, sources = resolve_with_sources(mine, {"seed": 4, "model": "resnet34"})
    assert (settings.model, settings.lr, settings.epochs, settings.amp) == ("resnet34", 0.5, 7, "off")
    base = str(Path(mine).parent / "base.yaml")
    assert {name: source for name, source in sources.items() if source != "default"} == {
        **{"model": "--set", "lr": f"recipe {mine}", "epochs": f"recipe {base}"},
        **{"amp": f"recipe {base}", "seed": "--set"},
    }
    assert sources.keys() == run_config(settings, {}, world_size=1).keys() - {"data"}


def test_a_file_extends_a_recipe_that_ships_by_name(write: Write) -> None:
    settings = resolve_settings(write("mine.yaml", "extends: miil\nepochs: 3\n"))
    assert (settings.model, settings.epochs) == ("tresnet_m", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: miil-kd\n", "extends miil-kd, which extends miil; a recipe may extend one that extends none"),
        ("extends: mill\n", "unknown recipe"),
        ("extends: [miil, tiny]\n", "wanted the name of one recipe"),
        ("extend: miil\n", "unknown setting 'extend'; nearest: extends"),
        ("optimiser: adam\n", "unknown setting 'optimiser'; nearest: optimizer"),
        ("- 1\n", "holds no settings"),
        ("lr: fast\n", "lr is 'fast'; wanted a number"),
        ("{\n", "not readable as YAML"),
        ("lr: 0.1\nseed: 1\nlr: 0.2\n", "bad.yaml: not readable as YAML (lr stands in line 1 and again in line 3;"),
        ("model_args:\n  depth: 1\n  depth: 1\n", "depth stands in line 2 and again in line 3"),
        ("init: ''\n", "init is ''; wanted text that is not empty, or off"),
    ],
)
def test_a_recipe_that_is_none_is_refused_with_the_reason(text: str, message: str, write: Write) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_settings(write("bad.yaml", text))


@pytest.mark.parametrize(
    ("idle", "base"),
    [
        ("kd_weight: 3\n", "teacher"),
        ("kd_reduction: sum\n", "teacher"),
        ("kd_temperature: 4\n", "teacher"),
        ("init_head: slice\n", "init"),
    ],
)
def test_a_setting_that_shapes_nothing_is_refused_unless_it_is_to_do_without(
    idle: str, base: str, write: Write
) -> None:
    name, _, value = idle.strip().partition(": ")
    recipe, on_top = write("idle.yaml", idle), write("on-top.yaml", f"extends: idle.yaml\n{base}: off\n")
    single = parse_sets([f"{name}={value}"])
    for recipe_name, settings in ((recipe, {}), (None, single), (on_top, single)):
        with pytest.raises(ValueError, match=rf"{name} is .* and no {base} is set; give --set {base}=\.\.\., or leave"):
            resolve_settings(recipe_name, settings)
    default = getattr(TrainSettings(), name)
    assert getattr(resolve_settings(recipe, {base: "run/"}), name) != default
    assert getattr(resolve_settings(recipe, {base: None}), name) != default  # as to measure what it is good for
    assert getattr(resolve_settings(on_top), name) != default
    assert getattr(resolve_settings(settings={name: default}), name) == default


def test_a_run_that_did_without_is_a_recipe_too(tmp_path: Path) -> None:
    settings = resolve_settings("miil-kd", {"kd_weight": 3, "teacher": None})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_config(settings, {}, world_size=1)))
    assert resolve_settings(str(path)) == settings
    with pytest.raises(ValueError, match="no teacher is set"):
        resolve_settings(str(path), {"kd_weight": 5})


def test_a_recipe_that_extends_itself_ends(write: Write) -> None:
    with pytest.raises(ValueError, match="a recipe may extend one that extends none"):
        resolve_settings(write("snake.yaml", "extends: snake.yaml\n"))


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'tinny'; nearest: tiny"):
        resolve_settings("tinny")


def test_a_runs_configuration_is_a_recipe(tmp_path: Path) -> None:
    settings = resolve_settings("modern", {"lr": 0.125, "milestones": [0.5], "trackers": []})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_config(settings, {"num_train": 9}, world_size=2)))
    assert resolve_settings(str(path)) == settings


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_that_ships_resolves_to_a_model_that_timm_knows(name: str) -> None:
    settings = resolve_settings(name)
    assert timm.is_model(settings.model)
    if settings.teacher:
        assert settings.teacher in timm.list_pretrained()
    assert describe_recipes()[name].endswith(".")
    assert read_recipe(name)["model"] == settings.model


def test_the_issues_recipes_are_there() -> None:
    baselines = ("resnet50", "resnet101", "resnet152", "efficientnet-b0", "efficientnet-b1", "regnet", "resnext50")
    names = [
        "miil",
        "miil-kd",
        "miil-scratch",
        "miil-single-label",
        "tiny",
        *(f"pycls-{name}" for name in baselines),
    ]
    assert set(names) < set(list_recipes())


PAPER: dict[str, Any] = {
    **{"optimizer": "adam", "lr": 3e-4, "weight_decay": 1e-4, "schedule": "one-cycle", "warmup": 0.1, "epochs": 80},
    **{"augment": "miil", "label_smoothing": 0.2, "normalize": "unit", "batch_size": 416, "loss": "semantic"},
}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("miil", {}),
        ("miil-kd", {"teacher": "tresnet_v2_l.miil_in21k"}),
        ("miil-single-label", {"loss": "cross-entropy"}),
        ("miil-scratch", {"optimizer": "sgd", "lr": 1e-2, "epochs": 140, "momentum": 0.0}),
    ],
)
def test_the_papers_recipes_hold_the_papers_values(name: str, changed: dict[str, Any]) -> None:
    wanted = TrainSettings(**{"model": "tresnet_m", "base_batch": 3328, **PAPER, **changed})
    assert resolve_settings(name) == wanted


@pytest.mark.parametrize(
    ("name", "on_8_gpus", "weight_decay", "test_size"),
    [
        *((f"pycls-{word}", 0.2, 5e-5, 256) for word in ("resnet50", "resnet101", "resnet152", "resnext50")),
        ("pycls-regnet", 0.4, 5e-5, 256),
        ("pycls-efficientnet-b0", 0.4, 1e-5, 256),
        ("pycls-efficientnet-b1", 0.4, 1e-5, 274),
    ],
)
def test_pycls_recipes_give_its_published_configurations(
    name: str, on_8_gpus: float, weight_decay: float, test_size: int
) -> None:
    settings = resolve_settings(name)
    assert scaled_lr(settings, 8 * settings.batch_size) == pytest.approx(on_8_gpus)
    assert (settings.weight_decay, settings.momentum, settings.epochs) == (weight_decay, 0.9, 100)
    assert (settings.schedule, settings.warmup * settings.epochs) == ("cosine", 5)
    assert (settings.optimizer, settings.optimizer_args) == ("sgd", {"nesterov": True})
    assert (settings.augment, settings.normalize, settings.loss) == ("inception", "imagenet", "cross-entropy")
    assert settings.image_size is not None
    assert settings.crop_pct is not None
    assert round(settings.image_size / settings.crop_pct) == test_size


TRANSFERS: dict[str, dict[str, Any]] = {
    "finetune-imagenet1k": {
        "loss": "cross-entropy",
        "optimizer": "adamw",
        "lr": 5e-5,
        "layer_decay": 0.8,
        "base_batch": 512,
    },
    "finetune-cifar100": {"loss": "cross-entropy", "optimizer": "sgd", "lr": 1e-2, "weight_decay": 1e-4, "epochs": 50},
    "finetune-multilabel": {"loss": "asymmetric", "optimizer": "adam", "lr": 1e-4, "epochs": 40, "image_size": 448},
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_the_recipes_of_finetune_hold_what_was_published(name: str) -> None:
    settings = resolve_settings(name)
    assert {key: getattr(settings, key) for key in TRANSFERS[name]} == TRANSFERS[name]
    of_convnext = name == "finetune-imagenet1k"
    assert (settings.augment, settings.ema is None) == (("inception-ra", True) if of_convnext else ("miil", False))


def test_the_dials_of_the_asymmetric_loss_are_the_published_ones() -> None:
    settings = resolve_settings("finetune-multilabel")
    assert (settings.asl_gamma_positive, settings.asl_gamma_negative, settings.asl_margin) == (0, 4, 0.05)
    assert settings.weight_decay * settings.batch_size == pytest.approx(1e-4, rel=0.02)
