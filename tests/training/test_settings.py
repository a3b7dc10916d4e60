"""Settings: from recipes, sets and flags to one checked description."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from in21k.training import TrainSettings, list_recipes, resolve_settings, run_config


def test_without_a_recipe_the_defaults_are_the_papers() -> None:
    settings = resolve_settings()
    assert settings == TrainSettings()
    assert (settings.loss, settings.label_smoothing, settings.optimizer) == ("semantic", 0.2, "adam")
    assert (settings.lr, settings.warmup, settings.weight_decay) == (3e-4, 0.1, 0)
    assert (settings.augment, settings.normalize, settings.amp) == ("none", "unit", "auto")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr=3e-4", "lr", 3e-4),
        ("lr=1", "lr", 1.0),
        ("epochs=1e1", "epochs", 10),
        ("amp=off", "amp", "off"),
        ("max_steps=null", "max_steps", None),
        ("max_steps=7", "max_steps", 7),
        ("channels_last=true", "channels_last", True),
        ("model_args={img_size: 64}", "model_args", {"img_size": 64}),
        ("init=weights.pt", "init", "weights.pt"),
    ],
)
def test_a_set_takes_the_kind_of_its_setting(text: str, name: str, value: object) -> None:
    found = getattr(resolve_settings(sets=[text]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lr"], "KEY=VALUE"),
        (["epochs=2.5"], "epochs is 2.5; wanted a whole number"),
        (["epochs=true"], "epochs is True; wanted a whole number"),
        (["lr=fast"], "lr is 'fast'; wanted a number"),
        (["lr=0"], "lr is 0.0; wanted more than 0"),
        (["lr=nan"], "lr is nan"),
        (["batch_size=0"], "batch_size is 0; wanted at least 1"),
        (["channels_last=2"], "wanted true or false"),
        (["loss=semantics"], "loss is 'semantics'; wanted one of semantic, cross-entropy"),
        (["label_smoothing=1"], "label_smoothing is 1.0"),
        (["learning_rate=1"], "unknown setting 'learning_rate'; known:"),
        (["epoch=1"], "epochs"),
        (["model_args=[1"], "not readable as YAML"),
        (["model_args=3"], "model_args is 3; wanted {name: value}"),
        (["lr=0.1", "lr=0.2"], "lr is asked for twice, as 0.1 and as 0.2"),
    ],
)
def test_a_wrong_set_is_refused_with_what_was_wanted(sets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_settings(sets=sets)


def test_a_flag_and_a_set_may_agree_but_not_differ() -> None:
    assert resolve_settings(sets=["epochs=3"], flags={"epochs": 3, "model": None}).epochs == 3
    with pytest.raises(ValueError, match="epochs is asked for twice, as 4 and as 3"):
        resolve_settings(sets=["epochs=3"], flags={"epochs": 4})


def test_what_is_asked_for_one_by_one_wins_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: resnet18\namp: off\nlr: 3e-3\n")
    settings = resolve_settings(str(recipe), ["lr=0.1"], {"model": "resnet34"})
    assert (settings.model, settings.amp, settings.lr) == ("resnet34", "off", 0.1)


def test_every_recipe_that_ships_resolves() -> None:
    assert "tiny" in list_recipes()
    for name in list_recipes():
        resolve_settings(name)


def test_an_unknown_recipe_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'tinny'; known: tiny"):
        resolve_settings("tinny")
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds no settings"):
        resolve_settings(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_text("optimiser: adam\n")
    with pytest.raises(ValueError, match="unknown setting 'optimiser'; known: optimizer"):
        resolve_settings(str(tmp_path / "bad.yaml"))


def test_a_runs_configuration_is_a_recipe(tmp_path: Path) -> None:
    settings = resolve_settings("tiny", ["lr=0.125"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_config(settings, {"num_train": 9}, world_size=2)))
    assert resolve_settings(str(path)) == settings
