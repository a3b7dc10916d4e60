"""What `dataset.json` records of a folder: bytes and sha256 of its files and of itself, so that a change is noticed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .atomic import SELF, naming, parse_json, sealed
from .names import file_name
from .shape import COUNT, SHA256, Each, check_shape

log = logging.getLogger(__name__)

DATASET_JSON = "dataset.json"
VERSION = 2  # of the formats of our folders
UNRECORDED_VERSION = 1  # whose dataset.json records no files


def record_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return {name: {num_bytes, sha256}} of files in a folder. Raises OSError."""
    record: dict[str, dict[str, Any]] = {}
    for name in names:
        with naming(folder / name), (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            record[name] = {"num_bytes": file.tell(), "sha256": digest}
    return record


def parse_dataset_json(data: bytes, location: str, *, kind: str, made_by: str) -> dict[str, Any]:
    """Return what the bytes of a `dataset.json` say.

    Raises ValueError, naming the location, where they are none of the format `kind`, or not as they were written.
    """
    content = parse_json(data, f"{location}: its {DATASET_JSON}", f"wanted a folder that `{made_by}` made")
    if content.get("format") != kind:
        raise ValueError(f"{location}: is {content.get('format')!r}; wanted {kind!r}, which `{made_by}` makes")
    version = content.get("version")
    if version == UNRECORDED_VERSION:
        _warn_of_no_record(location, made_by)
        return content
    if version != VERSION:
        raise ValueError(
            f"{location}: version {version!r} of the format; this in21k reads {UNRECORDED_VERSION} and {VERSION}"
        )
    if content.get(SELF) != sealed(content)[SELF]:
        raise ValueError(
            f"{location}: its {DATASET_JSON} has changed since it was written ({SELF} differs); copy it again from "
            f"where it came, or make the folder again with `{made_by}`"
        )
    files = content.get("files")
    check_shape(files, Each({"num_bytes": COUNT, "sha256": SHA256}), f"{location}: in its {DATASET_JSON} files")
    for name in files or ():
        file_name(name, f"{location}: its {DATASET_JSON}")
    return content


@cache
def _warn_of_no_record(location: str, made_by: str) -> None:
    """Warn once of each folder."""
    log.warning(
        "%s: is of version %d of the format, which has no checksums of its tables: changed labels go unnoticed; "
        "`%s` makes version %d",
        location,
        UNRECORDED_VERSION,
        made_by,
        VERSION,
    )


class FileRecord:
    """The files of a folder as its `dataset.json` records them; each is compared once.

    files: {name: {num_bytes, sha256}}; None: of a version that records none.
    """

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._folder, self.files = folder, files
        self._compared: set[str] = set()

    def num_bytes(self, name: str) -> int | None:
        """Return the recorded size of a file; None where nothing is recorded of it."""
        return self.files[name]["num_bytes"] if self.files and name in self.files else None

    def problem(self, name: str) -> str:
        """Say in what way a file differs from its record; nothing for one that does not. Raises OSError."""
        if self.files is None or name in self._compared:
            return ""
        if name not in self.files:
            return f"{DATASET_JSON} records no such file"
        wanted = self.files[name]
        try:
            actual = record_files(self._folder, [name])[name]
        except FileNotFoundError:
            return "missing"
        if actual["num_bytes"] != wanted["num_bytes"]:
            return f"has {actual['num_bytes']:,} bytes; {DATASET_JSON} records {wanted['num_bytes']:,}"
        if actual != wanted:
            digests = f"sha256 {actual['sha256'][:16]}…, {DATASET_JSON} {wanted['sha256'][:16]}…"
            return f"has changed since it was written ({digests})"
        self._compared.add(name)
        return ""
