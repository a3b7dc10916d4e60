"""Exports: folders of a trained network for timm, the Hugging Face hub, and in21k itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ...models import known_label_spaces, label_space_of
from ...models.card import render_model_card
from ...models.export import (
    CHECKSUMS,
    changed_files,
    read_checksums,
    save_weights,
    weights_fingerprint,
    write_checksums,
)
from ...models.onnx_file import export_onnx
from ...models.trial import try_images
from ...shards.files.atomic import read_json, write_json, write_text
from ...shards.files.output import check_folder, check_same, foreign_files, publish, staged_folder
from ..metric_names import measured
from ..settings import TrainSettings
from .checkpoint import load_checkpoint
from .run_folder import EXPORT_JSON, RunFolder, network_config
from .saved_run import SavedRun

log = logging.getLogger(__name__)

FORMAT, VERSION = "in21k-export", 1
# What shapes the bytes of a folder: another command is refused by these.
_PROVENANCE = ("fingerprint", "weights", "license", "onnx")
# Settings that say where and when something ran, not how the network was trained.
_NO_LINE = (
    "model",
    "workers",
    "backend",
    "save_every_steps",
    "keep_last",
    "log_every_steps",
    "trackers",
    "max_bad_rate",
)


def write_export(
    saved: SavedRun,
    out: Path,
    *,
    weights: str,
    described: str,
    metrics: Mapping[str, Any],
    notes: Sequence[str] = (),
    license_id: str = "other",
    onnx: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an export; return what its `export.json` holds.

    It is also a finished run, without checkpoints and log: `load_run` opens it.

    weights:   `last`, `best`, `ema` or `average`.
    described: which weights these are, a sentence for the model card.
    metrics:   what was measured of these very weights; it becomes `metrics.json`.

    A finished export of the same weights and settings is left as it is.

    Raises ValueError where `out` holds anything else (unless it is an export and `overwrite`, whose files are then
    replaced), where other files are in the way, and where the ONNX file computes other logits.
    """

    provenance = {
        "fingerprint": weights_fingerprint(saved.model),
        **{"weights": weights, "license": license_id, "onnx": onnx},
    }
    settings = saved.settings
    with staged_folder(out) as staged:
        existing = existing_export(out, provenance, overwrite=overwrite)
        if existing is not None:
            log.info("%s: finished already; nothing to do", out)
            return existing
        try_images(saved.model, settings.image_size or 224, name=settings.model, num_outputs=len(saved.tree))
        content = _fill(staged, saved, provenance, described=described, metrics=metrics, notes=notes)
        publish(staged, out, marker=EXPORT_JSON, record=CHECKSUMS, read_record=read_checksums)
    return content


def existing_export(out: Path, provenance: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the content of a finished export that was made from the same; None where there is room for a new one."""

    if not check_folder(out):
        return None
    content = read_json(out / EXPORT_JSON) if (out / EXPORT_JSON).is_file() else {}
    if content.get("format") != FORMAT:
        raise foreign_files(out)
    if overwrite:
        return None
    check_same(out, {key: content.get(key) for key in _PROVENANCE}, provenance)
    if changed := changed_files(out):
        raise ValueError(f"{out}: {changed[0]} is not what was exported; give --overwrite to write the folder again")
    return content


def _fill(
    folder: Path,
    saved: SavedRun,
    provenance: Mapping[str, Any],
    *,
    described: str,
    metrics: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:

    settings = saved.settings
    config = _portable({**saved.config, "ema": None})  # what lies here is one set of weights
    timms = network_config(saved.model, config, saved.tree)
    save_weights(saved.model, folder / "model.safetensors")
    write_json(folder / "config.json", timms)
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    write_json(folder / "metrics.json", dict(metrics))
    saved.tree.save(folder / "tree.json")
    check = export_onnx(saved.model, folder / "model.onnx", settings.image_size or 224) if provenance["onnx"] else None
    card = render_model_card(
        config=timms,
        num_parameters=sum(parameter.numel() for parameter in saved.model.parameters()),
        weights=described,
        label_space=known_space(saved.tree.wnids),
        data=config["data"],
        settings=_worth_a_line(config),
        metrics=[(metric.title, metric.text(value)) for metric, value in measured(metrics)],
        teacher=config.get("teacher"),
        notes=notes,
        license_id=provenance["license"],
        with_onnx=check is not None,
    )
    write_text(folder / "README.md", card)
    content = {
        **{"format": FORMAT, "version": VERSION, **provenance},
        **{"architecture": timms["architecture"], "num_classes": timms["num_classes"]},
        **({"onnx_check": check._asdict()} if check else {}),
    }
    write_json(folder / EXPORT_JSON, content)
    write_checksums(folder)
    return content


def _portable(value: Any) -> Any:
    """Return plain values with paths cut to their last part, as the rest is true of one machine alone."""
    if isinstance(value, dict):
        return {name: _portable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    if isinstance(value, str) and ("/" in value or "\\" in value) and not value.startswith("hf-hub:"):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def known_space(wnids: Sequence[str]) -> str | None:
    """Return the name of the published label space that these classes are; None where they are none."""
    name = known_label_spaces().get(len(wnids))
    return name if name and set(label_space_of(len(wnids)).wnids) == set(wnids) else None


def _worth_a_line(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a reader of the card wants, and all that are not the defaults."""

    defaults = asdict(TrainSettings())
    always = ("loss", "optimizer", "lr", "schedule", "epochs", "batch_size", "augment")
    known = [name for name in defaults if name in config and name not in _NO_LINE]
    lines = {name: config[name] for name in known if name in always or config[name] != defaults[name]}
    return {**lines, "ranks": config["data"]["world_size"]}


def metrics_of(path: Path, weights: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steps, epochs and validation of the weights that `load_run(path, weights)` returns.

    Weights of a checkpoint that was not validated at that step have no validation.
    """

    averaged = weights == "ema"
    if path.is_dir():
        run = RunFolder(path)
        if run.finished and weights != "best":
            return _of_weights(read_json(path / "metrics.json"), averaged=averaged)
        averaged = averaged or (weights == "best" and config.get("ema") is not None)
        checkpoint = run.best if weights == "best" else run.last
    else:
        checkpoint = path
    position: dict[str, Any] = load_checkpoint(checkpoint)["position"]
    validation = _validation_at(checkpoint.parent.parent / "log.jsonl", position["step"])
    counts = {"num_epochs": position["epoch"], "num_steps": position["step"]}
    return {**counts, **_of_weights(validation, averaged=averaged)}


def _of_weights(validation: Mapping[str, Any], *, averaged: bool) -> dict[str, Any]:
    """Return the part of a validation that is about the averaged weights, or about the last step's."""
    kept = {name: validation[name] for name in ("num_epochs", "num_steps") if name in validation}
    own = validation.get("ema", {}) if averaged else validation
    # `best_*` is about other weights.
    return {**kept, **{name: value for name, value in own.items() if name != "ema" and not name.startswith("best_")}}


def _validation_at(log_file: Path, step: int) -> dict[str, Any]:
    """Return the last validation that a log has of a step; empty where it has none."""
    validation: dict[str, Any] = {}
    if log_file.is_file():
        with log_file.open(encoding="utf-8") as lines:
            for line in lines:
                if '"validation"' in line and (content := json.loads(line))["step"] == step:
                    validation = content["validation"]
    return validation
