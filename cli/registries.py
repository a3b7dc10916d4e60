"""The names in the registry of losses, for help texts."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "training" / "losses" / "registry.py"


def loss_names() -> str:
    """Return the names of the losses, joined by commas, from the source: importing the registry would load torch."""
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LOSSES":
            assert isinstance(node.value, ast.Dict)
            return ", ".join(ast.literal_eval(key) for key in node.value.keys if key)
    raise LookupError(f"{SOURCE} has no LOSSES")
