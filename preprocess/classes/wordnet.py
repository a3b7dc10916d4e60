"""WordNet 3.0's nouns: names, definitions, hypernyms, and the one parent of each synset."""

from __future__ import annotations

import csv
import hashlib
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger(__name__)

DATA = Path(__file__).parents[1] / "data"
NOUNS = DATA / "wordnet-nouns.parquet"
_WNID = re.compile(r"n\d{8}")


class WordNet:
    """Names, definitions and hypernyms of noun synsets, by wnid (`n` + the synset's 8-digit offset).

    nouns: a table of offset int32 (ascending), name (first lemma, underscores as spaces), definition, and
    hypernyms list<int32> (the `@` pointers only: instance hypernyms do not count).
    version: identifies these nouns.
    """

    def __init__(self, nouns: pa.Table, version: str) -> None:
        self._nouns = nouns
        self.version = version

    @classmethod
    def packaged(cls) -> WordNet:
        """The packaged WordNet 3.0: the table that `read_nouns` made of the original files."""
        return cls(pq.read_table(NOUNS), "3.0")

    @classmethod
    def read(cls, folder: str | Path) -> WordNet:
        """Read a folder of WordNet files (`data.noun`, `index.noun`, `noun.exc`); raises ValueError without them."""
        nouns = read_nouns(Path(folder))
        return cls(nouns, hashlib.sha256((Path(folder) / "data.noun").read_bytes()).hexdigest()[:16])

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {offset: row for row, offset in enumerate(self._nouns["offset"].to_pylist())}

    @cached_property
    def _hypernyms(self) -> list[list[int]]:
        return self._nouns["hypernyms"].to_pylist()

    def _row(self, wnid: str) -> int:
        row = self._rows.get(int(wnid[1:])) if _WNID.fullmatch(wnid) else None
        if row is None:
            raise KeyError(wnid)
        return row

    def __contains__(self, wnid: str) -> bool:
        return bool(_WNID.fullmatch(wnid)) and int(wnid[1:]) in self._rows

    def name(self, wnid: str) -> str:
        """Return the synset's first lemma, underscores as spaces; raises KeyError for an unknown synset."""
        return self._nouns["name"][self._row(wnid)].as_py()

    def definition(self, wnid: str) -> str:
        """Return the synset's gloss without its examples; raises KeyError for an unknown synset."""
        return self._nouns["definition"][self._row(wnid)].as_py()

    def hypernyms(self, wnid: str) -> list[str]:
        """Return the synset's hypernyms, ascending; raises KeyError for an unknown synset."""
        return [f"n{offset:08d}" for offset in self._hypernyms[self._row(wnid)]]


def read_nouns(folder: Path) -> pa.Table:
    """Read the nouns of a folder of WordNet files with NLTK, as the table that `WordNet` takes (a few seconds)."""
    nouns = [folder / name for name in ("data.noun", "index.noun", "noun.exc")]
    for path in nouns:
        if not path.is_file():
            raise ValueError(
                f"{path}: missing; wanted a folder of WordNet files with data.noun, index.noun and noun.exc"
            )
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    # NLTK reads only complete sets below its data path: write one with these nouns and with the other files empty.
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corpus = Path(root) / "corpora" / "wordnet"
        corpus.mkdir(parents=True)
        for path in nouns:
            shutil.copyfile(path, corpus / path.name)
        with nouns[0].open(encoding="utf-8") as lines:
            licence = "".join(line for line in lines if line.startswith("  "))
        for part in ("adj", "adv", "verb"):
            (corpus / f"data.{part}").write_text(licence)
            (corpus / f"index.{part}").write_text(licence)
            (corpus / f"{part}.exc").touch()
        (corpus / "index.sense").touch()
        (corpus / "lexnames").write_text("".join(f"{number:02d}\tlexname.{number}\t1\n" for number in range(45)))
        nltk.data.path.insert(0, root)
        try:
            reader = WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)
            rows = sorted(
                (
                    synset.offset(),
                    synset.lemma_names()[0].replace("_", " "),
                    synset.definition(),
                    sorted(hypernym.offset() for hypernym in synset.hypernyms()),
                )
                for synset in reader.all_synsets("n")
            )
        finally:
            nltk.data.path.remove(root)
    offsets, names, definitions, hypernyms = zip(*rows, strict=True)
    return pa.table(
        {
            "offset": pa.array(offsets, pa.int32()),
            "name": pa.array(names, pa.string()),
            "definition": pa.array(definitions, pa.string()),
            "hypernyms": pa.array(hypernyms, pa.list_(pa.int32())),
        }
    )


def hypernym_choice() -> dict[str, str]:
    """Return for synsets of several hypernyms the one that is the parent in the reference's tree (496 rows in DATA)."""
    with (DATA / "hypernym_choice.csv").open(newline="") as lines:
        return {row["child"]: row["parent"] for row in csv.DictReader(lines)}


def parent_of(wnid: str, wordnet: WordNet, choice: Mapping[str, str]) -> str | None:
    """Return the parent of a synset, None for a root. Of several hypernyms `choice` decides, else the smallest wnid."""
    hypernyms = wordnet.hypernyms(wnid)
    if len(hypernyms) < 2:
        return hypernyms[0] if hypernyms else None
    if choice.get(wnid) in hypernyms:
        return choice[wnid]
    log.warning("%s has %d hypernyms, and none is known as its parent: taking %s", wnid, len(hypernyms), hypernyms[0])
    return hypernyms[0]


def main(folder: str) -> None:
    """Write the packaged table from a folder of WordNet files: `python -m in21k.preprocess.classes.wordnet FOLDER`."""
    encoding = {
        "offset": "DELTA_BINARY_PACKED",
        "name": "DELTA_BYTE_ARRAY",
        "definition": "DELTA_LENGTH_BYTE_ARRAY",
        "hypernyms.list.element": "DELTA_BINARY_PACKED",
    }
    pq.write_table(
        read_nouns(Path(folder)), NOUNS, compression="brotli", use_dictionary=False, column_encoding=encoding
    )


if __name__ == "__main__":
    main(sys.argv[1])
