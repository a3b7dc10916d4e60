"""Names in files and keys do not depend on the locale of who prepares."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import tables_of, write_files, write_tar

LOCALE = "en_US.ISO-8859-1"
PREPARE = """
import locale, sys
from pathlib import Path
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.sources.labelled import read_labelled
from in21k.preprocess.pack_labelled import LabelledData, describe_images, pack_labelled
from in21k.preprocess.run import prepare
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.sources.open import open_folder

home, out = Path(sys.argv[1]), Path(sys.argv[2])
print(sys.getfilesystemencoding())
for name in ("source", "list.txt"):
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    prepare(open_folder(home / name), out / name, select=select, image=ImageSettings(size=16))
for name in ("classes", "list.txt"):
    images = read_labelled(home / name)
    facts, image = describe_images(images), ImageSettings(size=16)
    data = LabelledData(
        name="data", provenance=facts, list_labels=lambda: images, list_images=lambda _: images, image=image
    )
    pack_labelled(data, out / f"{name}-packed")
"""


@pytest.fixture
def latin1(tmp_path: Path) -> dict[str, str]:
    """The environment of a locale whose file names are ISO-8859-1."""
    localedef = shutil.which("localedef")
    if not localedef:
        pytest.skip("no localedef here")
    made = subprocess.run(
        [localedef, "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / LOCALE)], capture_output=True, text=True
    )
    if not (tmp_path / LOCALE).is_dir():
        pytest.skip(f"localedef makes no {LOCALE}: {made.stderr}")
    return {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": LOCALE, "PYTHONUTF8": "0"}


def test_a_latin1_locale_gives_the_same_bytes(
    latin1: dict[str, str], draw: object, encode: object, tmp_path: Path
) -> None:
    photo = encode(draw(20, 18))
    images = [("café/é 1.jpg", photo), ("café/日本.jpg", photo), ("金毛犬/1.jpg", photo), ("金毛犬/2.jpg", photo)]
    write_files(tmp_path / "source", [*images, ("ö.tar", write_tar([("é.jpg", photo)]))])
    write_files(tmp_path / "classes", images)
    (tmp_path / "list.txt").write_text("".join(f"classes/{name} {name.partition('/')[0]}\n" for name, _ in images))
    encodings = []
    for name, env in (("latin1", latin1), ("utf8", {**os.environ, "PYTHONUTF8": "1"})):
        words = [sys.executable, "-c", PREPARE, str(tmp_path), str(tmp_path / name)]
        done = subprocess.run(words, env=env, capture_output=True, encoding="latin-1", check=False)
        assert done.returncode == 0, done.stderr
        encodings.append(done.stdout.strip())
    assert encodings == ["iso8859-1", "utf-8"]
    for name in ("source", "list.txt", "classes-packed", "list.txt-packed"):
        assert tables_of(tmp_path / "latin1" / name) == tables_of(tmp_path / "utf8" / name)
