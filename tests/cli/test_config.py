"""config show and list: every value, and where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from in21k.training import TrainSettings, list_recipes
from in21k.training.settings import setting_kinds

from .conftest import run, run_json


def test_show_prints_every_setting_with_its_source_aligned() -> None:
    result = run("config", "show", "miil-kd", "--set", "lr=1e-3", "--set", "ema=off")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(setting_kinds())
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert rows["lr"] == ["0.001", "--set"]
    assert rows["ema"] == ["null", "--set"]
    assert rows["epochs"] == ["80", "recipe miil"]
    assert rows["teacher"] == ["tresnet_v2_l.miil_in21k", "recipe miil-kd"]
    assert rows["seed"] == ["0", "default"]
    (begin,) = {line.rindex("  ") for line in lines}
    assert begin


def test_show_as_json_is_what_the_text_says_and_explains() -> None:
    shown = run_json("config", "show", "tiny")
    assert shown["recipe"] == "tiny"
    assert shown["settings"]["model"] == {
        **{"value": "resnet18", "source": "recipe tiny"},
        "meaning": "A timm architecture, or one of ours (`in21k models`).",
    }


def test_without_a_recipe_show_prints_the_defaults() -> None:
    shown = run_json("config", "show")
    assert {name: row["value"] for name, row in shown["settings"].items()} == vars(TrainSettings())
    assert {row["source"] for row in shown["settings"].values()} == {"default"}


def test_explain_adds_what_each_setting_means() -> None:
    text = run("config", "show", "--explain").stdout
    assert "    The peak learning rate.\n" in text
    assert max(map(len, text.splitlines())) <= 110


def test_what_show_prints_is_what_set_takes() -> None:
    shown = run("config", "show", "modern").stdout.splitlines()
    # Values end where the sources' column begins.
    column = next(line.rindex("  recipe") for line in shown if "  recipe" in line)
    start = max(map(len, setting_kinds())) + 2
    sets = [f"{line.split()[0]}={line[start:column].strip()}" for line in shown]
    words = [word for text in sets for word in ("--set", text)]
    again = run_json("config", "show", *words)["settings"]
    once = run_json("config", "show", "modern")["settings"]
    assert {name: row["value"] for name, row in again.items()} == {name: row["value"] for name, row in once.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tinny",), "nearest: tiny"),
        (("miil", "--set", "learning_rate=1"), "unknown setting 'learning_rate'"),
        (("miil", "--set", "lr=0"), "lr is 0.0; wanted more than 0"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    result = run("config", "show", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_runs_configuration_is_shown(trained: Path) -> None:
    path = trained / "config.yaml"
    row = run_json("config", "show", path)["settings"]["model"]
    assert (row["value"], row["source"]) == ("resnet10t", f"run {path}")
    rows = run_json("config", "show", path, "--set", "lr=0.5")["settings"]
    assert {name for name, row in rows.items() if row["source"] != f"run {path}"} == {"lr"}


def test_list_names_each_recipe_with_its_purpose() -> None:
    recipes = run_json("config", "list")
    assert list(recipes) == list_recipes()
    lines = run("config", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
