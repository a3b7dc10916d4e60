"""Exports of published weights: the folder of `in21k export`, made of a file that no run of ours wrote."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from ...models.card import render_model_card
from ...models.export import save_weights, timm_config, weights_fingerprint, write_checksums
from ...models.onnx_file import export_onnx
from ...preprocess import build_tree
from ...shards.files.atomic import write_json, write_text
from ...shards.files.output import publish, staged_folder
from ..inference.open_model import open_model
from ..runs.export import CHECKSUMS, FORMAT, VERSION, existing_export, known_space, read_checksums
from ..runs.run_folder import EXPORT_JSON

log = logging.getLogger(__name__)

PUBLISHED = "published"  # in export.json, where runs have last, best or ema


def export_published(
    path: Path,
    out: Path,
    *,
    architecture: str | None = None,
    classes: str | None = None,
    license_id: str = "other",
    onnx: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder that timm, the hub and `open_model` open, of a file of published weights; return its export.json.

    architecture, classes: see `open_model`.

    The folder has no config.yaml: how the weights were trained is unknown. Its tree is that of `classes`, else
    WordNet's. A finished export of the same weights is left as it is.

    Raises ValueError where the file cannot be opened, its classes are unknown, and where `out` holds anything else.
    """
    opened = open_model(path, architecture=architecture, classes=classes)
    if opened.classes is None:
        raise ValueError(f"{path}: the classes of its outputs are unknown; give --classes")
    tree = opened.tree or build_tree(opened.classes.wnids)
    config = timm_config(
        opened.model,
        architecture=opened.name,
        model_args={},
        image_size=opened.image_size,
        crop_pct=opened.crop_pct,
        normalize=(opened.mean, opened.std),
        wnids=tree.wnids,
        names=tree.names,
    )
    config["pretrained_cfg"]["interpolation"] = opened.interpolation
    provenance = {"fingerprint": weights_fingerprint(opened.model), "weights": PUBLISHED}
    provenance |= {"license": license_id, "onnx": onnx}
    with staged_folder(out) as staged:
        existing = existing_export(out, provenance, overwrite=overwrite)
        if existing is not None:
            log.info("%s: finished already; nothing to do", out)
            return existing
        opened.check()
        save_weights(opened.model, staged / "model.safetensors")
        write_json(staged / "config.json", config)
        tree.save(staged / "tree.json")
        check = export_onnx(opened.model, staged / "model.onnx", opened.image_size) if onnx else None
        card = render_model_card(
            config=config,
            num_parameters=sum(parameter.numel() for parameter in cast(Any, opened.model).parameters()),
            weights=f"They come from the file {path.name}.",
            label_space=known_space(tree.wnids),
            data={},
            settings={},
            metrics=[],
            teacher=None,
            notes=(),
            license_id=license_id,
            with_onnx=check is not None,
        )
        write_text(staged / "README.md", card)
        content = {
            **{"format": FORMAT, "version": VERSION, **provenance},
            **{"architecture": config["architecture"], "num_classes": config["num_classes"]},
            **({"onnx_check": check._asdict()} if check else {}),
        }
        write_json(staged / EXPORT_JSON, content)
        write_checksums(staged)
        publish(staged, out, marker=EXPORT_JSON, record=CHECKSUMS, read_record=read_checksums)
    return content
