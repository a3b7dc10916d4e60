from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image, ImageOps

from in21k.preprocess import build_tree
from in21k.preprocess.sample_data import archive as sample_data
from in21k.preprocess.sample_data import drawing as sample_drawing
from in21k.preprocess.sample_data.archive import ODDITIES, README, WNIDS, SampleArchive, write_sample_archive

ARCHIVE_FORMATS = {"PNG": "PNG", "palette PNG": "PNG", "16-bit PNG": "PNG", "GIF": "GIF", "BMP": "BMP", "WebP": "WEBP"}
MODES = {"CMYK JPEG": "CMYK", "greyscale JPEG": "L", "palette PNG": "P", "GIF": "P", "16-bit PNG": "I;16"}


def members(path: Path) -> dict[str, bytes]:
    """Read every member: `README.txt`, `<wnid>/<name>`, in the archive's order."""
    contents: dict[str, bytes] = {}
    with tarfile.open(path, "r:") as outer:
        for member in outer:
            content = outer.extractfile(member).read()
            assert (member.mtime, set(member.pax_headers)) == (0, {"comment"})  # of the whole archive
            if not member.name.endswith(".tar"):
                contents[member.name] = content
                continue
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as inner:
                for image in inner:
                    assert (image.mtime, image.pax_headers) == (0, {})
                    contents[f"{member.name.removesuffix('.tar')}/{image.name}"] = inner.extractfile(image).read()
    return contents


def decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleArchive, dict[str, bytes]]:
    path = tmp_path_factory.mktemp("odd") / "odd.tar"
    return write_sample_archive(path, num_classes=8, images_per_class=4, oddities=True), members(path)


def kinds(odd: tuple[SampleArchive, dict[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    archive, contents = odd
    return {kind: (name, contents[name]) for name, kind in archive.oddities.items()}


def test_an_archive_holds_class_tars_of_named_jpegs(tmp_path: Path) -> None:
    steps: list[int] = []
    archive = write_sample_archive(tmp_path / "a.tar", num_classes=9, images_per_class=3, on_progress=steps.append)
    contents = members(tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert len(contents) == archive.num_images == sum(steps) == 27
    assert archive.archive_bytes == (tmp_path / "a.tar").stat().st_size
    assert (archive.num_classes, archive.oddities) == (9, {})
    assert {name.split("/")[0] for name in contents} == set(archive.tree.wnids) == set(WNIDS[:9])
    for name, content in contents.items():
        wnid, file_name = name.split("/")
        assert file_name.startswith(f"{wnid}_")
        assert file_name.endswith(".JPEG")
        assert file_name.removeprefix(f"{wnid}_").removesuffix(".JPEG").isdigit()
        image = decoded(content)
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size in sample_drawing.SIZES


def test_equal_arguments_give_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    digests: list[str] = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_sample_archive(tmp_path / name, num_classes=8, images_per_class=3, seed=seed, oddities=True)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_a_class_looks_the_same_whatever_the_number_of_classes(tmp_path: Path) -> None:
    write_sample_archive(tmp_path / "few.tar", num_classes=8, images_per_class=1)
    write_sample_archive(tmp_path / "more.tar", num_classes=10, images_per_class=1)
    few, more = members(tmp_path / "few.tar"), members(tmp_path / "more.tar")
    assert few.items() <= more.items()


def test_the_classes_are_of_imagenet_21k_p_and_so_are_all_that_lie_between_them() -> None:
    label_space = Path(timm.__file__).parent / "data/_info/imagenet21k_miil_synsets.txt"
    of_21k = label_space.read_text().split()
    assert len(set(WNIDS)) == len(WNIDS) >= 200
    assert set(WNIDS) <= set(of_21k)
    whole, chosen = build_tree(of_21k), build_tree(WNIDS)
    for index, wnid in enumerate(WNIDS):
        in_21k = [whole.wnids[node] for node in whole.paths[whole.find(wnid)]]
        assert in_21k == [chosen.wnids[node] for node in chosen.paths[index]]


@pytest.mark.parametrize(("num_classes", "num_roots", "num_levels"), [(8, 3, 3), (12, 3, 4), (24, 4, 5), (200, 6, 6)])
def test_the_first_classes_make_a_tree_of_several_branches(num_classes: int, num_roots: int, num_levels: int) -> None:
    by_level = [len(classes) for classes in build_tree(WNIDS[:num_classes]).classes_by_level]
    assert (by_level[0], len(by_level)) == (num_roots, num_levels)
    assert min(by_level) >= 2


def test_siblings_differ_in_one_attribute_and_a_branch_shares_the_ones_above() -> None:
    looks, tree = sample_data._looks(), build_tree(WNIDS)
    assert len(set(looks.values())) == len(WNIDS)
    for index, parent in enumerate(tree.parents):
        look = looks[tree.wnids[index]]
        assert len(look) == tree.levels[index] + 1
        assert look[:-1] == (looks[tree.wnids[parent]] if parent >= 0 else ())


def test_every_attribute_can_be_drawn() -> None:
    for level, number in enumerate(sample_drawing.NUM_ATTRIBUTES):
        for attribute in range(number):
            image = sample_drawing.draw((0,) * level + (attribute,), np.random.default_rng(attribute))
            assert np.asarray(image).std() > 5


def test_every_oddity_is_there_once_and_named(odd: tuple[SampleArchive, dict[str, bytes]]) -> None:
    archive, contents = odd
    assert sorted(set(archive.oddities.values()) - {"README"}) == sorted(ODDITIES)
    assert len(archive.oddities) == len(ODDITIES) + 2
    assert archive.oddities.keys() <= contents.keys()
    assert {name for name in contents if name.endswith(README)} == {README, f"{archive.tree.wnids[0]}/{README}"}
    assert archive.num_images == len(contents) - 2 == 32


def test_all_but_the_named_ones_decode(odd: tuple[SampleArchive, dict[str, bytes]]) -> None:
    archive, contents = odd
    for name, content in contents.items():
        kind = archive.oddities.get(name)
        if kind == "README" or (kind is not None and not ODDITIES[kind].decodes):
            with pytest.raises(OSError):  # noqa: PT011 - Pillow's kinds of failure differ in their words
                decoded(content)
        else:
            image = decoded(content)
            assert image.format == ARCHIVE_FORMATS.get(kind or "", "JPEG")
            assert image.mode == MODES.get(kind or "", "RGB")


def test_odd_jpegs_carry_what_they_are_named_for(odd: tuple[SampleArchive, dict[str, bytes]]) -> None:
    by_kind = kinds(odd)
    assert decoded(by_kind["1 x 1"][1]).size == (1, 1)
    assert decoded(by_kind["comment"][1]).info["comment"] == b"drawn"
    assert decoded(by_kind["ICC profile"][1]).info["icc_profile"]
    assert decoded(by_kind["progressive JPEG"][1]).info["progressive"]
    assert by_kind["empty file"][1] == b""
    name = by_kind["name with spaces"][0]
    assert " " in name
    assert not name.isascii()


def test_rotated_images_stand_upright_once_their_orientation_is_applied(
    odd: tuple[SampleArchive, dict[str, bytes]], tmp_path: Path
) -> None:
    """The plain archive of the same arguments holds the same pictures, upright and encoded at some quality."""
    write_sample_archive(tmp_path / "plain.tar", num_classes=8, images_per_class=4)
    plain = members(tmp_path / "plain.tar")
    for orientation in range(2, 9):
        name, content = kinds(odd)[f"EXIF orientation {orientation}"]
        stored = decoded(content)
        assert stored.getexif()[0x0112] == orientation
        upright, wanted = ImageOps.exif_transpose(stored), decoded(plain[name])
        assert upright.size == wanted.size
        small = [np.asarray(image.convert("L").reduce(8), float) for image in (upright, wanted)]
        difference = small[0] - small[1]
        assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"num_classes": 7}, f"7 classes: .* 8 to {len(WNIDS)}"),
        ({"num_classes": len(WNIDS) + 1}, f"8 to {len(WNIDS)}"),
        ({"images_per_class": 0}, "0 images a class: wanted 1 or more"),
        ({"seed": -1}, "seed -1: wanted 0 or more"),
        ({"num_classes": 8, "images_per_class": 2, "oddities": True}, "give 3 images a class or more"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, int], wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        write_sample_archive(tmp_path / "a.tar", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_archive_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_archive(tmp_path / "a.tar", num_classes=8, images_per_class=1, on_progress=stop)
    assert list(tmp_path.iterdir()) == []
