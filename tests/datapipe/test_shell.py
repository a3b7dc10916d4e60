"""No name of a shard is run as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("webdataset")

from in21k.datapipe import create_loader
from in21k.datapipe.backends.webdataset_reading import expand_pattern, read_members
from in21k.shards import open_dataset

pytestmark = pytest.mark.security

COMMANDS = ["';touch TRACE;'", '";touch TRACE;"', "$(touch TRACE)", "`touch TRACE`", "\ntouch TRACE\n", "|touch TRACE"]


def with_trace(command: str, folder: Path) -> str:
    return command.replace("TRACE", str(folder / "trace"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "gs", "hf", "ais"])
def test_a_url_that_a_shell_would_run_is_refused(scheme: str, command: str, tmp_path: Path) -> None:
    url = f"{scheme}://localhost:1/{with_trace(command, tmp_path)}.tar"
    with pytest.raises(ValueError, match=r"by which a shell would run more than was meant; write it as %"):
        expand_pattern(url)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_library_runs_no_part_of_a_url(command: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on curl
        list(read_members(f"http://localhost:1/{with_trace(command, tmp_path)}.tar"))
    assert not (tmp_path / "trace").exists()


def test_a_query_and_what_is_encoded_are_no_commands() -> None:
    url = "https://host/a%27b.tar?X-Amz-Date=20260101T000000Z&X-Amz-Signature=ab~c&x=%24"
    assert expand_pattern(url).urls == [url]


@pytest.mark.parametrize("name", ["pipe:touch TRACE", "../pipe:touch TRACE", *COMMANDS])
def test_a_shard_that_a_table_names_is_never_a_command(name: str, shards_copy: Path, tmp_path: Path) -> None:
    content = json.loads((shards_copy / "dataset.json").read_text())
    content["shards"]["train"][0]["name"] = with_trace(name, tmp_path)
    (shards_copy / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset\.json"):
        create_loader(
            open_dataset(shards_copy), split="train", backend="webdataset", batch_size=4, image_size=32, workers=1
        )
    assert not (tmp_path / "trace").exists()
