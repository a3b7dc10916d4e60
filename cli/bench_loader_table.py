"""What `in21k bench-loader` prints."""

from __future__ import annotations

from typing import Any

from .options import table


def describe(result: dict[str, Any]) -> str:
    """Return in one line how the loaders were measured."""
    layout = ", channels last" if result["channels_last"] else ""
    return (
        f"batches of {result['batch_size']}, {result['image_size']} pixels, {result['dtype']}{layout} on the "
        f"{'GPU' if result['device'] == 'cuda' else 'CPU'}, augment {result['augment']}, {result['workers']} workers, "
        f"{result['cores']} cores"
    )


def render(result: dict[str, Any]) -> str:
    """Return the table of all backends, that of the sweep, notes, and the verdict."""
    parts = [
        f"{result['shards']}: {result['num_samples']:,} samples; {describe(result)}",
        table([_head(result), *(_row(backend, result) for backend in result["backends"]), *_lines(result)]),
    ]
    parts += [_render_sweep(result)] if result["sweep"] else []
    return "\n\n".join([*parts, "\n".join([*_notes(result), result["verdict"]])])


def _head(result: dict[str, Any]) -> list[str]:
    head = ["img/s", "min - max", "per core s", "cold", "p50 ms", "p95 ms", "p99 ms", "first s", "MB", "workers' MB"]
    return ["", *head, *(["GPU MB"] if _has_gpu(result) else [])]


def _has_gpu(result: dict[str, Any]) -> bool:
    return any(backend["gpu_memory_mb"] is not None for backend in result["backends"])


def _row(backend: dict[str, Any], result: dict[str, Any]) -> list[str]:
    cold = backend["cold_images_per_s"]
    waits = [f"{backend['latency_ms'][name]:,.1f}" for name in ("p50", "p95", "p99")]
    first = backend["first_batch_s"]
    row = [backend["backend"], *_rate_cells(backend["images_per_s"]), _or_dash(backend["images_per_core_s"])]
    row += [_or_dash(cold and cold["median"]), *waits, "-" if first is None else f"{first:.2f}"]
    row += [f"{backend['memory_mb'][name]:,.0f}" for name in ("own", "children")]
    return [*row, *([_or_dash(backend["gpu_memory_mb"])] if _has_gpu(result) else [])]


def _rate_cells(rate: dict[str, Any]) -> list[str]:
    return [f"{rate['median']:,.0f}", f"{rate['min']:,.0f} - {rate['max']:,.0f}"]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _lines(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows below the backends: what reading alone gives, what the network takes."""
    width, ceiling, demand = len(_head(result)), result["ceiling"], result["demand"]
    cold = ceiling.get("cold")
    rows = [["reading alone", *_rate_cells(ceiling["warm"]["images_per_s"]), "-"]]
    rows[0] += [_or_dash(cold and cold["images_per_s"]["median"])]
    rows += [[f"{demand['model']} takes", *_rate_cells(demand["images_per_s"])]] if demand else []
    return [row + [""] * (width - len(row)) for row in rows]


def _render_sweep(result: dict[str, Any]) -> str:
    medians: dict[str, dict[int, float]] = {}
    for setup in result["sweep"]:
        load = setup.get("hw_decoder_load")
        row = setup["backend"] if load is None else f"{setup['backend']}, hardware {load:g}"
        medians.setdefault(row, {})[setup["workers"]] = setup["images_per_s"]["median"]
    numbers = sorted({workers for row in medians.values() for workers in row})
    rows = [[name, *(_or_dash(row.get(number)) for number in numbers)] for name, row in medians.items()]
    return table([["img/s by workers", *map(str, numbers)], *rows])


def _best(setup: dict[str, Any]) -> str:
    load = setup.get("hw_decoder_load")
    hardware = "" if load is None else f", hw_decoder_load {load:g}"
    workers = f"{setup['workers']} worker{'s' if setup['workers'] > 1 else ''}"
    return f"{setup['backend']} {workers}{hardware} ({setup['images_per_s']['median']:,.0f} img/s)"


def _notes(result: dict[str, Any]) -> list[str]:
    reading = result["ceiling"]
    rates = {"memory": reading["warm"], "the disk": reading.get("cold")}
    rates_read = ", ".join(f"{rate['mb_per_s']:,.0f} MB/s from {place}" for place, rate in rates.items() if rate)
    notes = [f"reading alone: {rates_read}"]
    if result["cold_left_out"]:
        notes += [f"cold: not measured, as {result['cold_left_out']}"]
    short = [backend["backend"] for backend in result["backends"] if backend["num_epochs"] > 2 * result["rounds"]]
    if short:
        notes += [f"{', '.join(short)}: epochs are so short that their start counts; measure on more samples"]
    if result["sweep_best"]:
        notes += ["best of the sweep: " + "; ".join(map(_best, result["sweep_best"]))]
    notes += [
        f"{backend['backend']}: reads the same shards in another order, and each of its workers needs a shard"
        for backend in result["backends"]
        if not backend["same_samples"]
    ]
    notes += [
        f"{backend['backend']}: {backend['num_bad']} corrupt samples an epoch; `in21k verify --deep` names them"
        for backend in result["backends"]
        if backend["num_bad"]
    ]
    return notes + [f"{name}: failed ({reason})" for name, reason in result["failed"].items()]
