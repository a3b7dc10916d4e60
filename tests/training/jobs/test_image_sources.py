"""The images in files, folders and tars: their order, and what is skipped or unreadable."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from in21k.training.inference.images import UnreadableImageError
from in21k.training.jobs.image_sources import SkippedFiles, count_sources, image_sources

Draw, Encode, TarOf = Callable[..., Image.Image], Callable[..., bytes], Callable[..., bytes]


def test_a_damaged_tar_gives_what_comes_before_the_damage(
    tmp_path: Path, tar_of: TarOf, draw: Draw, encode: Encode
) -> None:
    whole = tar_of({f"{number}.jpg": encode(draw(seed=number)) for number in range(4)})
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "packed.tgz").write_bytes(gzip.compress(whole))
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "last.jpg").write_bytes(b"")
    names = ["cut.tar", "text.tar", "packed.tgz", "last.jpg"]
    sources = list(image_sources(tmp_path / name for name in names))
    broken = [Path(source.name).name for source in sources if isinstance(source.picture, UnreadableImageError)]
    assert broken == ["cut.tar", "text.tar"]
    assert sources[0].name == str(tmp_path / "cut.tar/0.jpg")
    assert sources[0].picture == encode(draw(seed=0))
    assert [source.name for source in sources[-5:]] == [
        *(f"{tmp_path}/packed.tgz/{number}.jpg" for number in range(4)),
        f"{tmp_path}/last.jpg",
    ]


def test_what_a_tar_holds_beside_files_cannot_be_read_and_the_rest_is(
    tmp_path: Path, tar_of: TarOf, draw: Draw, encode: Encode
) -> None:
    def odd(name: str, kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "0.jpg"
        return member

    image = encode(draw())
    inner = tar_of({"a.jpg": image, "b.jpg": image})
    members: dict[str, bytes | tarfile.TarInfo] = {
        "0.jpg": image,
        "symbolic.jpg": odd("symbolic.jpg", tarfile.SYMTYPE),
        "hard.jpg": odd("hard.jpg", tarfile.LNKTYPE),
        "pipe.png": odd("pipe.png", tarfile.FIFOTYPE),
        "link.tar": odd("link.tar", tarfile.SYMTYPE),
        "../up.jpg": image,
        "cut.tar": inner[: len(image) + 900],
        "text.tar": b"no tar",
        "packed.tgz": gzip.compress(inner),
        "last.jpg": image,
    }
    (tmp_path / "odd.tar").write_bytes(tar_of(members))
    sources = list(image_sources([tmp_path / "odd.tar"]))
    names = ["0.jpg", "symbolic.jpg", "hard.jpg", "pipe.png", "link.tar", "../up.jpg", "cut.tar/a.jpg", "cut.tar"]
    names += ["text.tar", "packed.tgz/a.jpg", "packed.tgz/b.jpg", "last.jpg"]
    assert [source.name for source in sources] == [f"{tmp_path}/odd.tar/{name}" for name in names]
    reasons = {
        source.name.rpartition("odd.tar/")[2]: str(source.picture)
        for source in sources
        if isinstance(source.picture, UnreadableImageError)
    }
    assert set(reasons) == {"symbolic.jpg", "hard.jpg", "pipe.png", "link.tar", "../up.jpg", "cut.tar", "text.tar"}
    assert all("not a regular file" in reasons[name] for name in ("symbolic.jpg", "hard.jpg", "pipe.png", "link.tar"))
    assert "unsafe name" in reasons["../up.jpg"]
    assert "not a tar, or damaged" in reasons["cut.tar"]
    assert all(source.picture == image for source in sources if not isinstance(source.picture, UnreadableImageError))


def test_files_that_are_known_not_to_be_images_are_skipped_unless_they_are_named(
    tmp_path: Path, tar_of: TarOf, draw: Draw, encode: Encode
) -> None:
    files = dict.fromkeys(("a.jpg", "._a.jpg", "@eaDir/a.jpg", "sub/__MACOSX/a.jpg", "._a.tar"), encode(draw()))
    for name, data in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    (tmp_path / "mine.tar").write_bytes(tar_of(files))
    for source in (tmp_path / "mine", tmp_path / "mine.tar"):
        skipped = SkippedFiles()
        assert [source.name for source in image_sources([source], skipped)] == [f"{source}/a.jpg"]
        assert str(skipped) == "4 files (.jpg 3, .tar 1)"
    assert count_sources([tmp_path / "mine"]) == (1, 0)
    named = tmp_path / "mine" / "._a.jpg"
    assert [source.name for source in image_sources([named])] == [str(named)]


def test_a_link_that_leads_back_up_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "x.jpg").write_bytes(b"")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    names = [Path(source.name).relative_to(tmp_path) for source in image_sources([tmp_path])]
    assert list(map(str, names)) == ["a/x.jpg", "b/x.jpg", "\\xff.jpg"]
