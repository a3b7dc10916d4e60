"""Settings: what each may be, of what kind, and which lean on one another."""

from __future__ import annotations

import re
from typing import Any

import pytest

from in21k.training import TrainSettings, resolve_settings
from in21k.training.recipes import parse_sets
from in21k.training.settings import setting_kinds, setting_meanings

# DESIGN.md, section 4: the names that `--set` and recipes use.
NAMES = """model model_args init loss label_smoothing teacher teacher_size kd_weight kd_reduction kd_temperature backend
augment mixup cutmix normalize crop_pct workers image_size batch_size epochs max_steps optimizer lr momentum
weight_decay layer_decay schedule warmup auto_scale_lr amp compile channels_last ema clip_grad accumulate sync_bn
grad_checkpointing save_every_steps keep_last validate_every_epochs best_by patience max_bad_rate seed deterministic"""


def test_the_contracts_names_are_settings_and_each_says_what_it_means() -> None:
    assert set(NAMES.split()) <= set(setting_kinds())
    meanings = setting_meanings()
    assert list(meanings) == list(setting_kinds())
    assert all(meaning.endswith(".") for meaning in meanings.values())


def test_without_a_recipe_the_defaults_are_the_papers() -> None:
    settings = resolve_settings()
    assert settings == TrainSettings()
    assert (settings.loss, settings.label_smoothing, settings.optimizer) == ("semantic", 0.2, "adam")
    assert (settings.lr, settings.schedule, settings.warmup, settings.weight_decay) == (3e-4, "one-cycle", 0.1, 0)
    assert (settings.augment, settings.normalize, settings.ema, settings.amp) == ("none", "unit", None, "auto")


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
        ("optimizer_args={betas: [0.9, 0.98]}", "optimizer_args", {"betas": [0.9, 0.98]}),
        ("init=weights.pt", "init", "weights.pt"),
        ("ema=0.9999", "ema", 0.9999),
        ("ema=off", "ema", None),
        ("clip_grad=false", "clip_grad", None),
        ("teacher=off", "teacher", None),
        ("milestones=[0.5, 75e-2]", "milestones", [0.5, 0.75]),
        ("trackers=[wandb, mlflow]", "trackers", ["wandb", "mlflow"]),
        ("trackers=off", "trackers", []),
        ("optimizer=lookahead_radam", "optimizer", "lookahead_radam"),
        ("normalize=imagenet", "normalize", "imagenet"),
        ("normalize=[0.5, 5e-1]", "normalize", [0.5, 0.5]),
        ("normalize=[[0.5, 0.5, 0.5], [0.5, 0.5, 0.4]]", "normalize", [0.5, [0.5, 0.5, 0.4]]),
        ("normalize=[[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]", "normalize", "imagenet"),
        ("normalize=[0, 1]", "normalize", "unit"),
    ],
)
def test_a_set_takes_the_kind_of_its_setting(text: str, name: str, value: object) -> None:
    actual = getattr(resolve_settings(settings=parse_sets([text])), name)
    assert actual == value
    assert type(actual) is type(value)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lr"], "KEY=VALUE"),
        (["init="], "--set init=: has no value; wanted --set KEY=VALUE, off where there is to be none"),
        (["init=''"], "init is ''; wanted text that is not empty, or off"),
        (["model=''"], "model is ''; wanted text that is not empty (--set"),
        (["epochs=2.5"], "epochs is 2.5; wanted a whole number"),
        (["epochs=true"], "epochs is True; wanted a whole number"),
        (["epochs=off"], "epochs is False; wanted a whole number"),
        (["lr=fast"], "lr is 'fast'; wanted a number"),
        (["channels_last=2"], "wanted true or false"),
        (["loss=semantics"], "loss is 'semantics'; wanted one of semantic, cross-entropy, bce"),
        (["learning_rate=1"], "unknown setting 'learning_rate'; nearest:"),
        (["epoch=1"], "epochs"),
        (["model_args=[1"], "not readable as YAML"),
        (["model_args=3"], "model_args is 3; wanted {name: value}"),
        (["model_args={1: 2}"], "model_args holds 1, which no argument can be called"),
        (
            ["model_args={drop_path_rate:0.1}"],
            "model_args holds 'drop_path_rate:0.1' without a value; wanted {name: value}, with a space after the colon",
        ),
        (["model_args={drop_rate: null}"], "model_args holds 'drop_rate' without a value"),
        (["model_args={block_args: {width:2}}"], "model_args holds 'width:2' without a value"),
        (["model_args={drop-rate: 0.1}"], "model_args holds 'drop-rate', which no argument can be called"),
        (["model_args={class: 0.1}"], "model_args holds 'class', which no argument can be called"),
        (["optimizer_args={nesterov:true}"], "optimizer_args holds 'nesterov:true' without a value"),
        (["optimizer_args={be tas: [0.9, 0.98]}"], "optimizer_args holds 'be tas', which no argument can be called"),
        (["model_args={num_classes: 5}"], "wanted neither num_classes nor in_chans, which come from the data"),
        (["milestones=0.5"], "milestones is 0.5; wanted a list"),
        (["milestones=[soon]"], "milestones is 'soon'; wanted a number"),
        (["lr=0.1", "lr=0.2"], "lr is given twice, as 0.1 and as 0.2"),
        (["optimizer=adamm"], "optimizer is 'adamm'; wanted adam, adamw, sgd, or another of timm's; nearest: adam"),
        (["optimizer=adahessian"], "optimizer is 'adahessian'"),
    ],
)
def test_a_wrong_set_is_refused_with_what_was_wanted(sets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_settings(settings=parse_sets(sets))


NAN, INFINITE = float("nan"), float("inf")
# What is refused, and what is not, at the edges of every rule.
EDGES: dict[str, tuple[list[Any], list[Any]]] = {
    **dict.fromkeys(("batch_size", "accumulate", "epochs", "keep_last"), ([0, -1, 1_000_001], [1, 1_000_000])),
    **dict.fromkeys(("max_steps", "save_every_steps", "base_batch"), ([0, 10**12 + 1], [1, None])),
    **dict.fromkeys(("lr", "clip_grad", "kd_temperature"), ([0.0, -1.0, NAN, INFINITE], [1e-9, 1e9])),
    **dict.fromkeys(("weight_decay", "kd_weight"), ([-0.1, NAN, INFINITE], [0.0, 100.0])),
    **dict.fromkeys(("label_smoothing", "momentum"), ([-0.1, 1.0, NAN], [0.0, 0.999])),
    **dict.fromkeys(("max_bad_rate", "hw_decoder_load"), ([-0.1, 1.1, NAN], [0.0, 1.0])),
    **dict.fromkeys(("asl_gamma_positive", "asl_gamma_negative"), ([-0.1, NAN, INFINITE], [0.0, 4.0])),
    "asl_margin": ([-0.1, 1.0, NAN], [0.0, 0.5]),
    **dict.fromkeys(("mixup", "cutmix", "warmup"), ([-0.1, 1.1, NAN], [0.0, 1.0])),
    **dict.fromkeys(("crop_pct", "layer_decay"), ([0.0, 1.1, NAN], [0.1, 1.0, None])),
    "ema": ([0.0, 1.0, NAN], [0.5, None]),
    "gamma": ([0.0, 1.1], [0.1, 1.0]),
    "normalize": (
        [
            "zscore",
            True,
            3,
            [0.5],
            [0.5, 0.5, 0.5],
            [[0.5, 0.5], 0.5],
            [0.5, 0.0],
            [-0.1, 0.5],
            [127.5, 58.4],
            [NAN, 1],
        ],
        ["imagenet", [0.5, 0.5], [0.0, 0.5], [[0.43, 0.41, 0.3], [0.21, 0.16, 0.14]]],
    ),
    "milestones": ([[], [0.0], [1.0], [0.6, 0.3], [0.3, 0.3], [NAN]], [[0.5], [0.3, 0.6]]),
    "trackers": ([["tensorflow"], ["wandb", "wandb"]], [[], ["mlflow", "wandb"]]),
    "image_size": ([0, 8193], [1, 8192, None]),
    "workers": ([0, 1025], [1, None]),
    "seed": ([-1, 2**63], [0, 2**63 - 1]),
    "schedule": (["cyclic"], ["cosine", "multi-step", "constant"]),
    "kd_reduction": (["max"], ["sum"]),
}


@pytest.mark.parametrize("name", EDGES)
def test_every_range_holds_at_its_edges(name: str) -> None:
    refused, taken = EDGES[name]
    for value in refused:
        with pytest.raises(ValueError, match=f"{name} is .*; wanted .* \\(--set {name}="):
            TrainSettings(**{name: value})
    for value in taken:
        assert getattr(TrainSettings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("given", "message", "completed"),
    [
        ({"auto_scale_lr": True}, "--set base_batch=", {"base_batch": 256}),
        ({"teacher_size": 384}, "no teacher is set", {"teacher": "run/"}),
        ({"backend": "webdataset"}, "--set epoch_samples=", {"epoch_samples": 1000}),
        ({"epoch_samples": 1000}, "backend auto counts its images", {"backend": "webdataset"}),
    ],
)
def test_a_setting_that_leans_on_another_asks_for_it(
    given: dict[str, Any], message: str, completed: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainSettings(**given)
    TrainSettings(**given, **completed)
