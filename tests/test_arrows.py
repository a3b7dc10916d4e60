"""Who may import whom (the folders' arrows point at the format), and what the package holds."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shards": set[str](),
    "preprocess": {"shards"},
    "datapipe": {"shards"},
    "models": {"shards"},
    "training": {"shards", "models"},
    "cli": {"shards", "preprocess", "datapipe", "models", "training"},
}
# What a room may import beyond its folder.
ROOM_MAY_IMPORT = {"training/jobs": {"datapipe", "preprocess"}}
# A training's settings are a loader's and more: of the root of `training`, these modules import that class.
DECLARATIONS = {(f"training/{name}.py", "in21k.datapipe.settings.LoaderSettings") for name in ("settings", "recipes")}
# Which rooms of its own folder a room may enter; the modules outside rooms are the folder's common ground.
ROOMS: dict[str, dict[str, set[str]]] = {
    "shards": {"files": set(), "remote": {"files"}},
    "preprocess": {
        "images": set(),
        "sources": {"images"},
        "classes": {"sources"},
        "sample_data": {"classes"},
    },
    "datapipe": {"augment": set(), "backends": {"augment"}, "bench": {"backends"}},
    "models": {},
    "training": {
        "losses": set(),
        "runs": set(),
        "evaluation": {"losses", "runs"},
        "inference": {"losses", "runs", "evaluation"},
        "features": {"losses", "inference"},
        "jobs": {"losses", "runs", "evaluation", "inference", "features"},
    },
    "cli": {"report": set()},
}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the absolute names of what a module of ours imports, at any depth of its code."""
    package = ["in21k", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_its_arrows_allow(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        room = path.parent.relative_to(ROOT).as_posix()
        source = path.relative_to(ROOT).as_posix()
        names = [name for name in imported_modules(path) if (source, name) not in DECLARATIONS]
        imported = {name.split(".")[1] for name in names if name.startswith("in21k.")}
        assert imported - {folder} <= MAY_IMPORT[folder] | ROOM_MAY_IMPORT.get(room, set()), path


def test_training_beside_its_jobs_takes_from_shards_the_tree_checking_and_writing_of_files_and_drawing_alone() -> None:
    modules_of_shards = {
        name.split(".")[2]
        for path in (ROOT / "training").rglob("*.py")
        for name in imported_modules(path)
        if name.startswith("in21k.shards.") and path.parent.name != "jobs"
    }
    assert modules_of_shards == {"tree", "files", "drawing", "fonts", "image_files", "normalize"}


def modules() -> dict[str, Path]:
    """Return every module and package of ours by its absolute name."""
    names = {}
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(["in21k", *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return names


def imports_of_modules() -> dict[str, set[str]]:
    """Return for every module of ours the modules of ours that it imports."""
    paths = modules()
    graph = {}
    for name, path in paths.items():
        named = (target if target in paths else target.rpartition(".")[0] for target in imported_modules(path))
        graph[name] = {target for target in named if target in paths} - {name}
    return graph


def test_no_module_imports_itself_by_way_of_others() -> None:
    list(TopologicalSorter(imports_of_modules()).static_order())  # raises CycleError, which names the circle


def test_a_room_imports_only_the_rooms_that_its_arrows_allow() -> None:
    arrows = set[tuple[str, str, str]]()
    for name, targets in imports_of_modules().items():
        for target in targets:
            (folder, room), (other, entered) = ((*module.split("."), "", "")[1:3] for module in (name, target))
            if folder == other and room != entered and {room, entered} <= ROOMS[folder].keys():
                arrows.add((folder, room, entered))
    assert {(folder, room, entered) for folder, room, entered in arrows if entered not in ROOMS[folder][room]} == set()


def test_every_room_is_one_of_those_with_arrows() -> None:
    for folder, rooms in ROOMS.items():
        assert {init.parent.name for init in (ROOT / folder).glob("*/__init__.py")} == set(rooms)


def test_every_package_folder_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    subpackages = {
        ".".join(["in21k", *init.parent.relative_to(ROOT).parts])
        for folder in MAY_IMPORT
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(packages) == {"in21k", *subpackages}


def test_the_top_level_holds_no_other_source() -> None:
    strays = [path.name for path in ROOT.glob("*.py")]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert strays == ["__init__.py"]  # the package's version, and nothing that imports
    assert list(imported_modules(ROOT / "__init__.py")) == []
    assert folders <= {*MAY_IMPORT, "tests", "benchmarks", "docs"}
