"""The metrics of a validation: what each is called, its unit and its meaning, wherever one is shown.

A new metric is computed in `evaluation/` and listed here; texts, curves, reports and model cards follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """One metric.

    name:     its key in the result of a validation.
    title:    in texts and tables.
    unit:     `%`; empty for a plain number.
    meaning:  a sentence for the caption of a curve; empty where training does not measure it.
    baseline: the metric that a trivial answer reaches, which stands beside it.
    digits:   after the decimal point.
    """

    name: str
    title: str
    unit: str = "%"
    meaning: str = ""
    baseline: str = ""
    digits: int = 1

    def text(self, value: float, digits: int | None = None) -> str:
        """Return a value with its unit.

        >>> Metric("top1", "top-1").text(54.236), Metric("num_samples", "images", "", digits=0).text(1234)
        ('54.2 %', '1,234')
        """
        return f"{value:,.{self.digits if digits is None else digits}f} {self.unit}".strip()


_AT_HALF = "labels of probability 0.5 or more"
METRICS = (
    Metric(
        "semantic_top1",
        "semantic top-1",
        meaning="An image counts once for each level that its class has.",
        baseline="semantic_top1_commonest",
    ),
    Metric("map", "mAP", meaning="The mean over labels, of the validation images.", baseline="map_chance"),
    Metric("top1", "top-1", meaning="The likeliest of all classes is the right one."),
    Metric("top5", "top-5", meaning="The right class is among the five likeliest."),
    Metric("macro_top1", "top-1, mean over classes", meaning="Each class counts alike, however many images it has."),
    Metric("macro_precision", "precision, mean over classes"),
    Metric("macro_recall", "recall, mean over classes"),
    Metric("macro_f1", "F1, mean over classes"),
    Metric("calibration_error", "calibration error"),
    Metric("mistake_distance", "steps from a wrong answer to the class", ""),
    Metric("cp", f"CP, mean precision of {_AT_HALF}"),
    Metric("cr", f"CR, mean recall of {_AT_HALF}"),
    Metric("cf1", "CF1, F1 of CP and CR"),
    Metric("op", f"OP, precision of {_AT_HALF}, all together"),
    Metric("or", f"OR, recall of {_AT_HALF}, all together"),
    Metric("of1", "OF1, F1 of OP and OR"),
    Metric("semantic_top1_commonest", "always the commonest answer"),
    Metric("map_chance", "equal scores for all"),
    Metric("num_samples", "validation images", "", digits=0),
    Metric("num_classes", "classes that the network shares with ImageNet-1K", "", digits=0),
    Metric("num_left_out", "images of other classes, left out", "", digits=0),
    Metric("num_unreadable", "unreadable images, left out", "", digits=0),
    Metric("num_labels", "labels with an image", "", digits=0),
)
BY_NAME = {metric.name: metric for metric in METRICS}
BASELINES = frozenset(metric.baseline for metric in METRICS if metric.baseline)


# What a validation measures while training, by which `best` may be chosen; the first is the default.
SINGLE_LABEL = ("semantic_top1", "top1", "top5", "macro_top1")
MULTI_LABEL = ("map", "cp", "cr", "cf1", "op", "or", "of1")


def best_metric(best_by: str | None, *, multi_label: bool) -> str:
    """Return the metric that chooses `best`: that of the setting best_by, or the default.

    Raises ValueError for a metric that a validation of such images does not measure.

    >>> best_metric(None, multi_label=False), best_metric("cf1", multi_label=True)
    ('semantic_top1', 'cf1')
    """
    names = MULTI_LABEL if multi_label else SINGLE_LABEL
    if best_by is not None and best_by not in names:
        images = "several labels" if multi_label else "one label"
        raise ValueError(
            f"best_by is {best_by!r}, which validation does not measure for images of {images}; "
            f"wanted {', '.join(names)} (--set best_by=...)"
        )
    return best_by or names[0]


def measured(result: Mapping[str, Any]) -> Iterator[tuple[Metric, float]]:
    """Yield the metrics that the result of a validation has, and their values; those without a value are left out."""
    for metric in METRICS:
        if result.get(metric.name) is not None:
            yield metric, result[metric.name]


def metric_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each metric of a validation, with its baseline in brackets.

    >>> metric_lines({"semantic_top1": 54.2, "semantic_top1_commonest": 30.04, "num_samples": 80})
    ['semantic top-1 54.2 % (always the commonest answer: 30.0 %)', 'validation images 80']
    """
    lines: list[str] = []
    for metric, value in measured(result):
        if metric.name not in BASELINES:
            baseline = BY_NAME.get(metric.baseline)
            beside = f" ({baseline.title}: {baseline.text(result[baseline.name])})" if baseline else ""
            lines.append(f"{metric.title} {metric.text(value)}{beside}")
    return lines


def describe_accuracy(validation: Mapping[str, Any]) -> str:
    """Return the metrics that training follows, in one line.

    >>> describe_accuracy({"semantic_top1": 54.2, "top1": 3.7, "top5": 20.1})
    'semantic top-1 54.2 %, top-1 3.7 %, top-5 20.1 %'
    """
    followed = ((metric, value) for metric, value in measured(validation) if metric.meaning)
    return ", ".join(f"{metric.title} {metric.text(value)}" for metric, value in followed)
