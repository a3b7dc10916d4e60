"""No decoder that is used dies of a JPEG, whatever its header says: in processes that they may end."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from .decoders import DEADLY, DECODERS, ROOT, search
from .jpegs import mutant, small_jpegs

pytestmark = pytest.mark.security

CRASHERS = sorted((Path(__file__).parent / "crashers").glob("*.jpg"))
needs_cv2 = pytest.mark.skipif(not importlib.util.find_spec("cv2"), reason="OpenCV is not installed")
decoders = pytest.mark.parametrize(
    "decoder", [pytest.param(name, marks=needs_cv2 if name in ("cv2", "store") else ()) for name in DECODERS]
)


@decoders
def test_no_decoder_dies_of_five_hundred_mutants(decoder: str) -> None:
    assert search(decoder, seed=0, first=0, stop=500) == []


@pytest.mark.slow
@decoders
def test_no_decoder_dies_of_ten_thousand_mutants(decoder: str) -> None:
    assert search(decoder, seed=0, first=500, stop=10_500) == []


@decoders
@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: path.stem)
def test_no_decoder_dies_of_what_one_has_died_of(path: Path, decoder: str) -> None:
    program = f"import sys; from tests.fuzz.decoders import DECODERS; DECODERS[{decoder!r}](sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", program], input=path.read_bytes(), cwd=ROOT, capture_output=True, check=True)


def test_a_search_names_the_mutants_that_end_a_process_and_goes_on() -> None:
    assert search("one that dies", seed=0, first=0, stop=60) == list(DEADLY.items())


def test_mutants_are_told_by_their_number_and_differ() -> None:
    assert len(small_jpegs()) == len(set(small_jpegs())) == 20
    mutants = [mutant(number) for number in range(400)]
    assert mutants == [mutant(number) for number in range(400)]
    assert len(set(mutants)) > 350
    assert mutant(1, seed=1) != mutant(1, seed=2)
