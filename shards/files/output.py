"""Decides whether a command may write to an output, and writes it: files, marked folders and replaced folders.

`--overwrite` removes only what in21k recorded as its own: a file with our marker, the tables of a finished folder, and
the files listed in `.work` of an unfinished one. Other files stay. If one is in the way, the command refuses.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .atomic import TEMPORARY, check_parent, describe_differences, read_json, sealed, write_json, write_text
from .lock import FileLock, lock_output

log = logging.getLogger(__name__)

WORK = ".work"


def may_write_file(
    path: Path,
    *,
    suffix: str = "",
    what: str,
    is_ours: Callable[[Path], bool],
    is_same: Callable[[Path], bool] | None = None,
    overwrite: bool = False,
) -> bool:
    """Return whether a command has to write the file `path`; False if it exists and was made from the same inputs.

    suffix:  the required ending of the name; "" for any.
    what:    a description such as "a picture".
    is_ours: tells whether an existing file is one that in21k wrote as `what`; no other file is ever replaced.
    is_same: tells whether such a file was made from the same inputs; None: it cannot be told.

    Raises ValueError if the command must not write there.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; wanted the name of {what}")
    if not path.name.lower().endswith(suffix):
        raise ValueError(f"{path}: {what} is a {suffix} file; give it a name that ends in {suffix}")
    check_parent(path)
    if not path.exists():
        return True
    if not is_ours(path):
        raise ValueError(f"{path}: exists and is not {what} of in21k, so it is not overwritten; give another name")
    if overwrite:
        return True
    if is_same and is_same(path):
        return False
    reason = ", made from other data or settings" if is_same else ""
    raise ValueError(f"{path}: exists{reason}; give another name, or --overwrite to replace {what}")


def is_inside(name: str) -> bool:
    """Return whether a name that a table lists is a file inside the folder of the table."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")


def check_folder(path: Path) -> list[str]:
    """Return the sorted names in a folder, empty if it does not exist; raises ValueError for a file."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file; wanted a folder to write to")
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []


def check_same(path: Path, was: Mapping[str, Any], wanted: Mapping[str, Any], way_out: str = "make it again") -> None:
    """Raise ValueError, naming the differences, if an output has another provenance than the one wanted."""
    if differences := describe_differences(was, wanted):
        raise ValueError(
            f"{path}: was made with other settings ({'; '.join(differences)}); give another name, or --overwrite to "
            f"{way_out}"
        )


def foreign_files(path: Path) -> ValueError:
    """Return the error for a folder with files that in21k did not make."""
    return ValueError(f"{path}: holds other files ({check_folder(path)[0]}, ...); give a new or an empty folder")


def check_not_in_the_way(path: Path, contents: Iterable[str], recorded: Collection[str]) -> None:
    """Raise ValueError if a file that no record lists lies at or below one of the names `contents` of a folder."""
    for name in contents:
        place = path / name
        below = sorted(entry for entry in place.rglob("*") if not entry.is_dir()) if place.is_dir() else [place]
        for entry in below:
            is_there = entry.exists() or entry.is_symlink()
            if is_there and str(entry.relative_to(path)) not in recorded and not _is_temporary(entry, path, recorded):
                raise ValueError(
                    f"{entry}: is in the way, and no record of in21k lists it, so it is not removed; move it away"
                )


def remove_files(path: Path, names: Iterable[str]) -> None:
    """Remove files of a folder, their temporary files, and the subfolders that this leaves empty."""
    names = {name for name in names if is_inside(name)}
    for place in {
        *(path / name for name in names if (path / name).is_dir()),
        *((path / name).parent for name in names),
    }:
        for entry in list(place.iterdir()) if place.is_dir() else []:
            if entry.is_dir():
                continue
            if str(entry.relative_to(path)) in names or _is_temporary(entry, path, names):
                entry.unlink()
        while place != path:
            with suppress(OSError):  # it is not empty, not there, or a link
                place.rmdir()
            place = place.parent


def remove_temporary(path: Path, names: Collection[str]) -> None:
    """Remove the temporary files that killed writers of these files of a folder left."""
    for place in {(path / name).parent for name in names}:
        for entry in list(place.glob(f"*{TEMPORARY}")) if place.is_dir() else []:
            if _is_temporary(entry, path, names):
                entry.unlink(missing_ok=True)


def _is_temporary(entry: Path, path: Path, names: Collection[str]) -> bool:
    """Return whether a file is what `whole_file` writes to, `NAME[.WRITER].tmp`, for one of these names."""
    if entry.suffix != TEMPORARY:
        return False
    parts = entry.name.split(".")
    return any(str(entry.with_name(".".join(parts[:end])).relative_to(path)) in names for end in range(1, len(parts)))


@contextmanager
def staged_folder(path: Path) -> Generator[Path]:
    """Yield an empty folder beside `path` to fill for `publish`, and remove what is left of it at the end.

    The block holds the lock of `path`. Raises ValueError if the parent folder does not exist, or if another process
    writes to `path`.
    """
    check_folder(path)
    path = path.resolve()
    check_parent(path)
    staged = path.with_name(f".{path.name}.in21k-new")
    lock = lock_output(staged, path, "writing there", lambda: staged.mkdir(exist_ok=True))
    try:
        for leftover in staged.iterdir():  # of a command that was killed
            leftover.unlink()
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        lock.release()


def publish(
    staged: Path, path: Path, *, marker: str, read_record: Callable[[Path], Mapping[str, str]], record: str
) -> None:
    """Move the files of `staged` to the folder `path`, replacing the older files that `path`'s record lists.

    If the process is killed on the way, the older marker stays, with a record that lists the files of both versions.
    Checking the folder against that record fails, so the mixture is noticed.

    marker:      the file that identifies this kind of output; written second to last.
    record:      the file that lists the others; written last.
    read_record: returns the lines of a folder's record by file name; empty if the folder has no record.

    Raises ValueError if a file that the record does not list is in the way.
    """
    path = path.resolve()
    if not check_folder(path):
        staged.rename(path)
        return
    older = {name: line for name, line in read_record(path).items() if is_inside(name)}
    newer = read_record(staged)
    names = sorted(entry.name for entry in staged.iterdir())
    check_not_in_the_way(path, names, {*older, record})
    write_text(path / record, "".join({**older, **newer}.values()))
    for name in [name for name in names if name not in (marker, record)]:
        (staged / name).replace(path / name)
    remove_files(path, older.keys() - newer.keys())
    for name in (marker, record):
        (staged / name).replace(path / name)


class OutputFolder:
    """A folder that one command fills; `dataset.json` marks it as finished.

    While the command runs, `.work/provenance.json` holds what the output is made from, and `.work/files.txt` lists its
    files in subfolders. The next run with the same provenance reuses the work that is done.
    As a context manager it locks the folder for this process. The state of the folder is checked in the constructor, to
    refuse early, and again under the lock: check `finished` inside the block too.

    path:       the folder; created if it does not exist.
    provenance: what shapes the bytes of the output, as JSON values; it becomes part of `dataset.json`.
    contents:   the names that this kind of folder holds beside `dataset.json`.
    list_files: returns the files in the subfolders of a finished output, from its tables; may raise ValueError.
    overwrite:  replace an existing output of this kind.

    Raises ValueError if the folder holds other files or has another provenance.
    """

    work_files = ("provenance.json", "files.txt", "clearing")

    def __init__(
        self,
        path: Path,
        *,
        provenance: Mapping[str, Any],
        contents: Sequence[str],
        list_files: Callable[[Path], Iterable[str]],
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.work = path / WORK
        self.finished = False
        self._provenance: dict[str, Any] = json.loads(json.dumps(provenance))
        self._contents, self._list_files, self._overwrite = contents, list_files, overwrite
        self._lock: FileLock | None = None
        self._marker = path / "dataset.json"
        self._unfinished_marker, self._record, clearing = (self.work / name for name in self.work_files)
        self._clearing = clearing  # exists while an older output is being removed, when none of its files counts
        self._decide()
        if self.finished:
            log.info("%s: finished already; nothing to do", path)
            if self.work.exists():
                with self:  # which removes the rest of a run that was killed in its last step
                    pass

    def _decide(self) -> bool:
        """Find out whether the output is finished; return whether an existing one has to be removed first."""
        names = check_folder(self.path)
        markers = [marker for marker in (self._marker, self._unfinished_marker) if marker.exists()]
        half_cleared = self._clearing.exists()
        if set(names) - {WORK} and not markers and not half_cleared:
            raise foreign_files(self.path)
        if markers and not self._overwrite and not half_cleared:
            was = read_json(markers[0])
            check_same(self.path, {key: was.get(key) for key in self._provenance}, self._provenance)
        anew = half_cleared or (bool(markers) and self._overwrite)
        if anew:
            check_not_in_the_way(self.path, self._contents, self._own_files())
        self.finished = not anew and self._marker in markers
        return anew

    def _own_files(self) -> set[str]:
        """Return every file that our records list; raises ValueError if they are damaged."""
        own = {self._marker.name, *self._contents}
        if self._record.exists():
            own.update(self._record.read_text(encoding="utf-8").splitlines())
        elif self._marker.exists():
            try:
                own.update(self._list_files(self.path))
            except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}: its tables do not list its files ({error}), so nothing is removed; "
                    "delete the folder yourself, or give another one"
                ) from error
        return {name for name in own if is_inside(name)}

    def __enter__(self) -> OutputFolder:
        """Lock the folder for writing; raises ValueError if another process holds it, and as the constructor."""
        self._lock = lock_output(
            self.path, self.path, "writing there", lambda: self.path.mkdir(parents=True, exist_ok=True)
        )
        try:
            anew = self._decide()
            if self.finished:
                shutil.rmtree(self.work, ignore_errors=True)
                return self
            self.work.mkdir(exist_ok=True)
            if anew:
                self._clear()
            remove_temporary(self.path, self._own_files())
            write_json(self._unfinished_marker, self._provenance)
            self._record.touch()
            self._clearing.unlink(missing_ok=True)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock
        self._lock.release()

    def own(self, names: Iterable[str]) -> None:
        """Record files in subfolders as this output's own, before they are written."""
        with self._record.open("a", encoding="utf-8") as record:
            record.writelines(f"{name}\n" for name in names)

    def _clear(self) -> None:
        own = self._own_files()
        self._record.write_text("".join(f"{name}\n" for name in sorted(own)), encoding="utf-8")
        self._clearing.touch()
        self._marker.unlink(missing_ok=True)  # first, so that a half-removed folder never looks finished
        remove_files(self.path, own)
        for entry in self.work.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry not in (self._clearing, self._record):
                entry.unlink()
        self._record.write_text("", encoding="utf-8")

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write `dataset.json`, which makes the folder finished, and remove the traces of the work."""
        remove_temporary(self.path, self._own_files())
        write_json(self._marker, sealed({**content, **self._provenance}))
        shutil.rmtree(self.work, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written, as if the command had never run."""
        self._clear()
        shutil.rmtree(self.work)
        with suppress(OSError):  # others have put something there
            self.path.rmdir()
