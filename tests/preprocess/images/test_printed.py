from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from in21k.preprocess.images.printed import printed_as_warnings


def test_decoders_lines_become_warnings_and_all_others_stay(capfd: pytest.CaptureFixture[str]) -> None:
    lines = (
        b"libpng warning: iCCP: too short\n",
        b"of another thread\n",
        b"[ WARN:0@0.048] global grfmt_png.cpp:793 readFromStreamOrBuffer PNG input buffer is incomplete\n",
        b"Corrupt JPEG data: 9 extraneous bytes before marker 0xd9\n",
        b"without an end",
    )
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        with printed_as_warnings():
            for line in lines:
                os.write(2, line)
        os.write(2, b", and after it")
    assert [str(entry.message) for entry in raised] == [
        "libpng warning: iCCP: too short",
        "grfmt_png.cpp:793 readFromStreamOrBuffer PNG input buffer is incomplete",
        "Corrupt JPEG data: 9 extraneous bytes before marker 0xd9",
    ]
    assert capfd.readouterr().err == "of another thread\nwithout an end, and after it"


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_take_turns(capfd: pytest.CaptureFixture[str]) -> None:
    def decode(number: int) -> None:
        with printed_as_warnings():
            os.write(2, b"libpng warning: %d\n" % number)

    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(decode, range(200)))
    assert sorted(str(entry.message) for entry in raised) == sorted(
        f"libpng warning: {number}" for number in range(200)
    )
    os.write(2, b"here")
    assert capfd.readouterr().err == "here"


def test_stderr_is_itself_again_after_an_exception(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with printed_as_warnings():
            raise ValueError

    for _ in range(3):
        before = num_open_files()
        with pytest.raises(ValueError):  # noqa: PT011
            fail()
        assert num_open_files() == before
    os.write(2, b"here")
    assert capfd.readouterr().err == "here"
