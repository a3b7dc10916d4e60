"""Features files of any content, written as `in21k features` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from in21k.training.features.feature_file import FeatureFile, open_features, write_features


def provenance(num_features: int, **other: Any) -> dict[str, Any]:
    facts = {"model": "m", "weights": "last", "fingerprint": "f", "layer": "pre-logits", "dtype": "float16"}
    return {**facts, "num_features": num_features, "shards": "s", "split": "train", **other}


def write(path: Path, features: NDArray[Any], labels: NDArray[np.int64], **other: Any) -> FeatureFile:
    """Write rows of classes n0, n1, ..., whose keys are n<class>_<row>."""
    facts = provenance(features.shape[1], **other)
    wnids = [f"n{label}" for label in labels]
    table = pa.table(
        {
            "key": [f"{wnid}_{row}" for row, wnid in enumerate(wnids)],
            "wnid": wnids,
            "class_index": pa.array(labels, pa.int32()),
        }
    )
    write_features(path, [(table, features)], facts, len(features), facts["dtype"])
    return open_features(path)


def blobs(num_rows: int, num_classes: int, width: int, seed: int = 0, spread: float = 1.0) -> tuple[Any, Any]:
    """Return rows around a centre for each class, float32 (N, D), in class order, and their classes."""
    centres = np.random.default_rng(99).standard_normal((num_classes, width))
    labels = np.sort(np.arange(num_rows) % num_classes)
    noise = np.random.default_rng(seed).standard_normal((num_rows, width))
    return (centres[labels] + spread * noise).astype(np.float32), labels
