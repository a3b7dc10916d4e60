"""`in21k probe`: linear classifiers on cached features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, device_option, emit, json_option, table, tree_option
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..shards import SemanticTree


@click.command()
@click.argument("train_features", type=PATH)
@click.argument("test_features", type=PATH)
@click.option(
    "--shots",
    type=click.IntRange(1),
    multiple=True,
    help="Images of a class; may be given several times.  [default: of 1, 5, 10, 25 what half of the classes have]",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Draws of the shots.")
@click.option("--few-shot/--no-few-shot", default=True, show_default=True, help="Ridge regressions of few shots.")
@click.option("--ridge/--no-ridge", default=True, show_default=True, help="A ridge regression of all images.")
@click.option("--linear/--no-linear", default=True, show_default=True, help="Logistic regression of all images.")
@click.option("--lr", "rates", type=float, multiple=True, help="Its learning rates to choose from.  [default: a grid]")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Its passes over the images.")
@tree_option
@device_option
@json_option
def probe(
    train_features: Path,
    test_features: Path,
    shots: tuple[int, ...],
    seeds: int,
    few_shot: bool,
    ridge: bool,
    linear: bool,
    rates: tuple[float, ...],
    epochs: int,
    tree: SemanticTree | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Fit linear classifiers to TRAIN_FEATURES, and measure each once on TEST_FEATURES (`in21k features` writes both).

    Ridge regression in closed form, one class against all others, of few shots (as big_vision's few-shot evaluation)
    and of all images; logistic regression by SGD. What has to be chosen (lambda, the learning rate) is chosen on a
    tenth of each class of train that is held back (at most 50 images of a class, and 50,000 in all), never on test.
    Train features of a Parquet file are held in memory (images x features x 2 bytes), those of an .npy read where they
    lie.

    At the size of 21K-P (11.8 million images x 2,048 features, 11,221 classes) two cores of a CPU would take about 5
    hours for few shots, 3 for the ridge regression of all images and 3 weeks for the logistic one (estimated from its
    steps): give --device cuda, or --no-linear.
    """
    from ..training.distributed import lone_device
    from ..training.features.feature_file import open_features
    from ..training.features.linear_probe import LEARNING_RATES as PROBE_LEARNING_RATES
    from ..training.features.probe import probe as training_probe

    if not (few_shot or ridge or linear):
        raise ValueError("nothing is left to fit; leave out one of --no-few-shot, --no-ridge, --no-linear")
    where = lone_device(device)
    train, test = open_features(train_features), open_features(test_features)
    with ProgressLine("probe") as progress:
        result = training_probe(
            train,
            test,
            shots=(shots or None) if few_shot else (),
            seeds=range(seeds),
            ridge=ridge,
            linear=linear,
            learning_rates=rates or PROBE_LEARNING_RATES,
            epochs=epochs,
            tree=tree,
            device=where,
            on_progress=progress,
        )
    emit(result, _render, as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    from ..training.metric_names import measured

    fits = [*result["few_shot"], *(result[name] for name in ("ridge", "linear") if name in result)]
    metrics = [metric for metric, _ in measured(fits[0])]
    rows = [["classifier", *(f"{metric.title} %" for metric in metrics), "+-", "chosen"]]

    def add(title: str, fit: dict[str, Any], chosen: str) -> None:
        deviation = fit.get("top1_deviation")
        spread = "" if deviation is None else f"{deviation:.1f}"
        rows.append([title, *(f"{fit[metric.name]:.1f}" for metric in metrics), spread, chosen])

    for fit in result["few_shot"]:
        chosen = ", ".join(f"{seed['lambda']:g}" for seed in fit["seeds"])
        add(f"ridge, {fit['shots']} shots", fit, f"lambda {chosen}")
    if "ridge" in result:
        add("ridge, all images", result["ridge"], f"lambda {result['ridge']['lambda']:g}")
    if "linear" in result:
        add("logistic, all images", result["linear"], f"lr {result['linear']['lr']:g}")
    return (
        f"{result['num_train']:,} rows to fit, {result['num_test']:,} to test: {result['num_features']:,} features, "
        f"{result['num_classes']:,} classes\n\n{table(rows)}"
    )
