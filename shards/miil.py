"""The `.pth` dictionary in which the reference code keeps its semantic tree."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from .files.torch_zip import check_unpacked


class MiilTree(NamedTuple):
    """What such a file says of each class: wnid, readable name, and path to the top (see `SemanticTree.paths`)."""

    wnids: list[str]
    names: list[str]
    paths: list[list[int]]


def read_miil(path: Path) -> MiilTree:
    """Read the file; raises ValueError for any other file.

    Only what `torch.load(weights_only=True)` allows is unpickled (text, numbers, lists), and numpy's integers and
    strings, which the published file holds.
    """
    import torch

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols
            with path.open("rb") as file:
                check_unpacked(file)
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        wnids, paths = content["class_list"], content["class_tree_list"]
        if not all(isinstance(wnid, str) for wnid in wnids) or not all(
            type(index) is int for path in paths for index in path
        ):
            raise ValueError("class_list has to hold text, class_tree_list lists of class indices")
        names = content.get("class_description", {})
        return MiilTree(
            list(wnids), [str(names.get(wnid, wnid)) for wnid in wnids], [list(indices) for indices in paths]
        )
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path}: no tree of the reference code ({_reason(error)})") from error


class _Dtype:
    """Stands for a numpy dtype in a pickle: integers (`i8`, `u4`) and strings (`U9`) of either byte order."""

    def __init__(self, name: str, *_flags: bool) -> None:
        kind, size = name[:1], name[1:]
        if kind not in ("i", "u", "U") or not size.isdecimal():
            raise ValueError(f"it holds numpy values of dtype {name!r}; wanted integers and text")
        self._kind, self._is_big = kind, False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._is_big = state[1] == ">"

    def value_of(self, data: bytes) -> int | str:
        """Return the Python value of a scalar's bytes."""
        if self._kind == "U":
            return data.decode("utf-32-be" if self._is_big else "utf-32-le").rstrip("\0")
        return int.from_bytes(data, "big" if self._is_big else "little", signed=self._kind == "i")


def _scalar(dtype: _Dtype, data: bytes) -> int | str:
    return dtype.value_of(data)


def _numpy_globals() -> list[Any]:
    """Return the stand-ins for the functions with which numpy 1 and 2 pickle scalars."""
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [*((_scalar, f"{module}.scalar") for module in modules), (_Dtype, "numpy.dtype")]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    # torch explains at length how to load without `weights_only`; the first sentence says what is wrong.
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
