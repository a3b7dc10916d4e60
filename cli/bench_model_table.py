"""What `in21k bench-model` prints."""

from __future__ import annotations

from typing import Any

from .options import table


def render(result: dict[str, Any], *, markdown: bool) -> str:
    """Return the table of all networks, and below it how they were measured."""
    models: list[dict[str, Any]] = result["models"]
    has_largest = "largest_training_batch" in models[0]
    accuracies = {"semantic top-1 %": "semantic_top1", "IN-1K top-1 %": "imagenet1k_top1"}
    accuracies = {title: key for title, key in accuracies.items() if any(key in model for model in models)}
    head = ["model", "precision", "pixels", "params (M)", "GMACs", "activations (M)"]
    head += [*(["largest batch"] if has_largest else []), "batch", "training img/s", "inference img/s"]
    head += [f"batch of {num_images} (ms)" for num_images in models[0]["latency_ms"]]
    head += [*([f"train {result['epochs']} epochs (h)"] if "epochs" in result else []), *accuracies]
    rows = [head]
    for model in models:
        row = [model["name"], model["precision"], str(model["image_size"])]
        row += [f"{model['num_parameters'] / 1e6:.1f}", f"{model['num_macs'] / 1e9:.2f}"]
        row += [f"{model['num_activations'] / 1e6:.1f}"]
        row += [*([f"{model['largest_training_batch']:,}"] if has_largest else []), f"{model['batch_size']:,}"]
        row += [_rate(model["training_images_per_s"]), _rate(model["inference_images_per_s"])]
        row += [f"{latency['median']:.2f} (p95 {latency['p95']:.2f})" for latency in model["latency_ms"].values()]
        row += [f"{model['train_hours']:,.4g}"] if "train_hours" in model else []
        row += [f"{model[key]:.1f}" if key in model else "" for key in accuracies.values()]
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
        *([f"batches of {100 * result['fill']:g} % of the largest"] if result["fill"] else []),
        *([f"hours for {result['num_train']:,} images"] if "epochs" in result else []),
        f"medians of {result['rounds']} rounds, in brackets their least and most",
    ]
    failed = [f"{key}: failed ({why})" for key, why in result["failed"].items()]
    return "\n".join([body, "", f"{result['device']}, torch {result['torch']}, {', '.join(form)}", *failed])


def _rate(spread: dict[str, float]) -> str:
    digits = 0 if spread["min"] >= 10 else 2
    return f"{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f} to {spread['max']:,.{digits}f})"
