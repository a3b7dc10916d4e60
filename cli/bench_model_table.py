"""What `in21k bench-model` prints."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from .options import table

if TYPE_CHECKING:
    from ..models.speed import Rounds


def summarize(rounds: Rounds) -> dict[str, Any]:
    """Return the rates and latencies of a network's rounds, as JSON values."""
    import numpy as np

    from ..datapipe.bench.summary import spread

    return {
        "training_images_per_s": spread(rounds.training),
        "inference_images_per_s": spread(rounds.inference),
        "latency_ms": {
            str(num_images): {
                "median": 1000 * statistics.median(seconds),
                "min": 1000 * min(seconds),
                "p95": 1000 * float(np.percentile(seconds, 95)),
                "num_passes": len(seconds),
            }
            for num_images, seconds in rounds.latencies.items()
        },
    }


def render(result: dict[str, Any], *, markdown: bool) -> str:
    """Return the table of all networks, and below it how they were measured."""
    models: list[dict[str, Any]] = result["models"]
    on_gpu = "largest_training_batch" in models[0]
    head = ["model", "precision", "pixels", "params (M)", "GMACs", "activations (M)"]
    head += [*(["largest batch"] if on_gpu else []), "batch", "training img/s", "inference img/s"]
    head += [f"batch of {num_images} (ms)" for num_images in models[0]["latency_ms"]]
    rows = [head]
    for model in models:
        row = [model["name"], model["precision"], str(model["image_size"])]
        row += [f"{model['num_parameters'] / 1e6:.1f}", f"{model['num_macs'] / 1e9:.2f}"]
        row += [f"{model['num_activations'] / 1e6:.1f}"]
        row += [*([f"{model['largest_training_batch']:,}"] if on_gpu else []), f"{model['batch_size']:,}"]
        row += [_rate(model["training_images_per_s"]), _rate(model["inference_images_per_s"])]
        row += [f"{latency['median']:.2f} (p95 {latency['p95']:.2f})" for latency in model["latency_ms"].values()]
        rows.append(row)
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|---|{'---:|' * (len(head) - 1)}")
        body = "\n".join(lines)
    else:
        body = table(rows)
    form = [
        *(["channels last"] if result["channels_last"] else []),
        *(["compiled"] if result["compile"] else []),
        f"medians of {result['rounds']} rounds, in brackets their least and most",
    ]
    failed = [f"{key}: failed ({why})" for key, why in result["failed"].items()]
    return "\n".join([body, "", f"{result['device']}, torch {result['torch']}, {', '.join(form)}", *failed])


def _rate(spread: dict[str, float]) -> str:
    digits = 0 if spread["min"] >= 10 else 2
    return f"{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f} to {spread['max']:,.{digits}f})"
