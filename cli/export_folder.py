"""What `in21k export` and `in21k average` leave: a folder for timm, the Hugging Face hub, and in21k itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.runs.saved_run import SavedRun

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

    A folder that was made from the same is left as it is. Raises ValueError where `out` is anything else, unless it is
    an older export and `overwrite`, whose own files are then replaced; where other files are in the way; and where the
    ONNX file does not compute the same.
    """
    from ..models.export import CHECKSUMS, read_checksums, weights_fingerprint
    from ..models.trial import try_images
    from ..shards.files.output import publish, staged_folder
    from ..training.runs.run_folder import EXPORT_JSON

    provenance = {
        "fingerprint": weights_fingerprint(saved.model),
        **{"weights": weights, "license": license_id, "onnx": onnx},
    }
    settings = saved.settings
    with staged_folder(out) as staged:
        existing = _existing(out, provenance, overwrite=overwrite)
        if existing is not None:
            log.info("%s: finished already; nothing to do", out)
            return existing
        try_images(saved.model, settings.image_size or 224, name=settings.model, num_outputs=len(saved.tree))
        content = _fill(staged, saved, provenance, described=described, metrics=metrics, notes=notes)
        publish(staged, out, marker=EXPORT_JSON, record=CHECKSUMS, read_record=read_checksums)
    return content


def _existing(out: Path, provenance: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the content of a finished export that was made from the same; None where there is room for a new one."""
    from ..models.export import changed_files
    from ..shards.files.atomic import read_json
    from ..shards.files.output import check_folder, check_same, foreign_files
    from ..training.runs.run_folder import EXPORT_JSON

    if not check_folder(out):
        return None
    content = read_json(out / EXPORT_JSON) if (out / EXPORT_JSON).is_file() else {}
    if content.get("format") != FORMAT:
        raise foreign_files(out)
    if overwrite:
        return None
    check_same(out, {key: content.get(key) for key in _PROVENANCE}, provenance)
    if changed := changed_files(out):
        raise ValueError(f"{out}: {changed[0]} is not what was exported; give --overwrite to make the folder anew")
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
    import yaml

    from ..models.card import render_model_card
    from ..models.export import save_weights, write_checksums
    from ..models.onnx_file import export_onnx
    from ..shards.files.atomic import write_json, write_text
    from ..training.runs.run_folder import EXPORT_JSON, network_config

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
        label_space=_label_space(saved.tree.wnids),
        data=config["data"],
        settings=_worth_a_line(config),
        metrics=metrics,
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
    """Return plain values whose paths are cut to their last part: they say where things lie on one machine."""
    if isinstance(value, dict):
        return {name: _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, str) and ("/" in value or "\\" in value) and not value.startswith("hf-hub:"):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def _label_space(wnids: Sequence[str]) -> str | None:
    from ..models import known_label_spaces, label_space_of

    name = known_label_spaces().get(len(wnids))
    return name if name and set(label_space_of(len(wnids)).wnids) == set(wnids) else None


def _worth_a_line(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a reader of the card wants, and all that are not the defaults."""
    from ..training import TrainSettings

    defaults = asdict(TrainSettings())
    always = ("loss", "optimizer", "lr", "schedule", "epochs", "batch_size", "augment")
    known = [name for name in defaults if name in config and name not in _NO_LINE]
    lines = {name: config[name] for name in known if name in always or config[name] != defaults[name]}
    return {**lines, "ranks": config["data"]["world_size"]}


def measured(path: Path, weights: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run says of the weights that `load_run(path, weights)` gives: steps, epochs, and their validation.

    Weights of a checkpoint that was not validated just then have no validation.
    """
    from ..shards.files.atomic import read_json
    from ..training.runs.checkpoint import load_checkpoint
    from ..training.runs.run_folder import RunFolder

    averaged = weights == "ema"
    if path.is_dir():
        run = RunFolder(path)
        if run.finished and weights != "best":
            found = read_json(path / "metrics.json")
            return _of_weights(found, averaged=averaged)
        averaged = averaged or (weights == "best" and config.get("ema") is not None)
        checkpoint = run.best if weights == "best" else run.last
    else:
        checkpoint = path
    position: dict[str, Any] = load_checkpoint(checkpoint)["position"]
    validation = _validation_at(checkpoint.parent.parent / "log.jsonl", position["step"])
    counts = {"num_epochs": position["epoch"], "num_steps": position["step"]}
    return {**counts, **_of_weights(validation, averaged=averaged)}


def _of_weights(validation: Mapping[str, Any], *, averaged: bool) -> dict[str, Any]:
    """Return the part of a validation that is of the averaged weights, or of those of the last step."""
    kept = {name: validation[name] for name in ("num_epochs", "num_steps") if name in validation}
    own = validation.get("ema", {}) if averaged else validation
    # The run's best is not of these weights.
    return {**kept, **{name: value for name, value in own.items() if name != "ema" and not name.startswith("best_")}}


def _validation_at(log_file: Path, step: int) -> dict[str, Any]:
    """Return the last validation that a log tells of after a step; nothing where there is none."""
    found: dict[str, Any] = {}
    if log_file.is_file():
        with log_file.open(encoding="utf-8") as lines:
            for line in lines:
                if '"validation"' in line and (told := json.loads(line))["step"] == step:
                    found = told["validation"]
    return found
