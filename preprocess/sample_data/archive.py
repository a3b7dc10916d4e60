"""A sample archive: drawn images of real classes, packed like the raw ImageNet-21K archive.

With it every command runs, and a network learns, without the real data: an outer tar of class tars `<wnid>.tar` whose
members are `<wnid>_<number>.JPEG`, and on request the odd files of real archives.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from ...shards.files.atomic import whole_file
from ...shards.files.output import may_write_file
from ...shards.tree import SemanticTree
from ..classes.taxonomy import build_tree
from .drawing import NUM_ATTRIBUTES, draw

log = logging.getLogger(__name__)

# Classes of ImageNet-21K-P (fall11), a parent always before its children, big branches first: any first few of them
# make a tree of several branches, and every class ancestor of a chosen class is chosen. No class has more children
# than its step down the tree has attributes to tell them apart. The first are animal, artifact, plant, vertebrate,
# conveyance, tree, bird, vehicle, conifer, craft, aquatic bird, pine, food, aircraft, swan, vessel.
_WNIDS = """
    n00015388 n00021939 n00017222 n01471682 n03100490 n13104059 n01503061 n04524313 n13108841 n03125870 n01844917
    n11608250 n00021265 n02686568 n01858441 n04530566 n07570720 n01604330 n01861778 n01621127 n01905661 n07557434
    n02159955 n11665372 n11669921 n07881800 n12992868 n01886756 n03183080 n03574816 n02370806 n07884567 n03733925
    n12041446 n02394477 n07891726 n02274024 n04341686 n02735688 n04105893 n12997654 n12998815 n03738472 n03736970
    n02913152 n03700963 n02858304 n07566340 n07809096 n07810907 n12205694 n12101870 n12102133 n02274259 n07712382
    n01524359 n01529672 n02512053 n01482071 n04437953 n02000954 n02022684 n01482330 n07829412 n12651821 n03094503
    n04576211 n04170037 n03791235 n04531098 n02876657 n02958343 n04574999 n04081281 n07892813 n02075296 n02120997
    n12707781 n07695965 n02691156 n01317541 n02084071 n02087122 n02092468 n03699975 n03789946 n03287733 n07556970
    n07609840 n07611358 n02373336 n01940736 n01955933 n02274822 n02103406 n02104523 n03051540 n03419014 n03863923
    n03057021 n03502509 n03497657 n03589791 n01661091 n01726692 n01727646 n01674464 n07901587 n07906284 n11672400
    n02821627 n02164464 n03546340 n03259505 n03544360 n04079244 n03096960 n04372370 n02512938 n03046257 n02534734
    n12056217 n03709206 n04403638 n02751295 n11965627 n01563128 n01567133 n03800933 n04586932 n02891788 n04338517
    n02880546 n01956481 n03359566 n01605630 n01610955 n04489008 n03507963 n02098550 n02101108 n02021795 n02041085
    n02954340 n03764276 n04552696 n03766322 n07596684 n07597365 n04019101 n04468005 n11915214 n11915899 n03294048
    n04285146 n03446832 n03278248 n03446070 n03916720 n03585073 n04004767 n03414162 n02778669 n01537134 n04027023
    n07614500 n01752165 n01753959 n02283201 n02121808 n03082979 n03918480 n02329401 n02355227 n01874434 n01877134
    n03990474 n01680264 n02165456 n02935658 n04205318 n04232153 n04516214 n12708293 n04194289 n01737021 n03985232
    n07832902 n13013534 n02773037 n03993180 n04361095 n04587648 n07911371 n07911677 n02083346 n07588947 n07802417
    n07804323 n12268246 n12269241 n13100677 n12160490 n01662622 n01662784 n01663401 n01877812 n02095412 n03225777
    n04536866 n01974773 n01976146 n01976957 n02959942 n03895866 n12641413 n12649065 n03896233 n07605474 n11609475
    n12107970 n02008041 n04490091 n03542333 n07581346 n07581775 n11620673 n11621029 n12685431 n12685831 n03045337
    n01845132 n01846331 n02799897 n04038727 n07597145 n07642471 n01491874 n01680478 n01859496
"""
WNIDS = tuple(_WNIDS.split())
_COMMENT = "in21k sample-data"
MIN_CLASSES = 8
QUALITIES = (75, 80, 85, 90, 92, 95)
_UPRIGHT_TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class SampleArchive:
    """What was written.

    num_images:     members named .JPEG, the odd ones included.
    archive_bytes:  size of the file.
    tree:           the semantic tree over its classes, in wnid order, as they lie in the archive.
    oddities:       per odd member (`<wnid>/<name>`; `README.txt` of the outer tar has no wnid) which of ODDITIES it is.
    """

    num_classes: int
    num_images: int
    archive_bytes: int
    tree: SemanticTree
    oddities: dict[str, str]


@dataclass(frozen=True)
class Oddity:
    """A kind of odd image file.

    encode:     makes its bytes from the drawn image.
    decodes:    whether a decoder gives an image for it.
    """

    encode: Callable[[Image.Image], bytes]
    decodes: bool = True


def _encoded(picture: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Oddity:
    def encode(picture: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _encoded(picture.transpose(_UPRIGHT_TO_STORED[orientation]), exif=exif)

    return Oddity(encode)


def _srgb_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # its creation time: equal arguments must give equal bytes
    return bytes(profile)


def _deep(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def _cut_off(picture: Image.Image) -> bytes:
    whole = _encoded(picture)
    return whole[: len(whole) * 3 // 5]


# The odd images of `oddities=True`. One of each kind replaces an ordinary image; all are named .JPEG.
ODDITIES: dict[str, Oddity] = {
    "truncated JPEG": Oddity(_cut_off, decodes=False),
    "empty file": Oddity(lambda _: b"", decodes=False),
    "web page": Oddity(lambda _: b"<html><body>This photo is no longer available.</body></html>\n", decodes=False),
    "CMYK JPEG": Oddity(lambda picture: _encoded(picture.convert("CMYK"))),
    "greyscale JPEG": Oddity(lambda picture: _encoded(picture.convert("L"))),
    "progressive JPEG": Oddity(lambda picture: _encoded(picture, progressive=True)),
    "PNG": Oddity(lambda picture: _encoded(picture, "PNG")),
    "palette PNG": Oddity(lambda picture: _encoded(picture.quantize(64), "PNG")),
    "16-bit PNG": Oddity(lambda picture: _encoded(_deep(picture), "PNG")),
    "GIF": Oddity(lambda picture: _encoded(picture.quantize(128), "GIF")),
    "BMP": Oddity(lambda picture: _encoded(picture, "BMP")),
    "WebP": Oddity(lambda picture: _encoded(picture, "WEBP")),
    "ICC profile": Oddity(lambda picture: _encoded(picture, icc_profile=_srgb_profile())),
    "comment": Oddity(lambda picture: _encoded(picture, comment=b"drawn")),
    "1 x 1": Oddity(lambda picture: _encoded(picture.resize((1, 1)))),
    "name with spaces": Oddity(_encoded),  # and letters beyond ASCII
    **{f"EXIF orientation {orientation}": _turned(orientation) for orientation in _UPRIGHT_TO_STORED},
}
# The first class tar and the outer tar each get one with `oddities=True`.
README = "README.txt"
_README_TEXT = b"Drawn images, to try in21k on. They show nothing and belong to nobody.\n"


def write_sample_archive(
    out: Path,
    *,
    num_classes: int = 24,
    images_per_class: int = 60,
    seed: int = 0,
    oddities: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> SampleArchive:
    """Write an archive of drawn images with the layout of fall11_whole.tar; a finished one of equal arguments is kept.

    Equal arguments give equal bytes (with one version of Pillow). The look of a class follows from its place in the
    tree (see `drawing`), whatever the number of classes. Memory holds one class at a time.

    num_classes:  the first so many of WNIDS, 8 to all of them; 24 reach levels 0..4 under four top classes.
    oddities:     replace one image by each of ODDITIES, and add a README.txt to a class tar and to the outer tar;
                  five of these are not images (0.3 % at 24 x 60).
    overwrite:    replace another sample archive of that name; no other file is ever replaced.
    on_progress:  called after each image with the number of images written since the last call.

    Raises ValueError for numbers out of range, and for another file at `out` unless `overwrite`.
    """
    _check(num_classes, images_per_class, seed, oddities)
    # Readers skip a tar's comment; the next call recognises the archive by it.
    comment = f"{_COMMENT}, {num_classes} x {images_per_class}, seed {seed}, {oddities=}"
    wnids = sorted(WNIDS[:num_classes])
    placed = _placed(wnids, images_per_class, seed) if oddities else {}
    members = {wnid: _members(wnid, images_per_class, seed, placed) for wnid in wnids}
    odd_names = {f"{wnid}/{name}": kind for wnid in wnids for name, kind in members[wnid] if kind}
    if oddities:
        odd_names |= {README: "README", f"{wnids[0]}/{README}": "README"}
    out.parent.mkdir(parents=True, exist_ok=True)
    if may_write_file(
        out,
        what="a sample archive",
        is_ours=lambda path: _comment_of(path).startswith(_COMMENT),
        is_same=lambda path: _comment_of(path) == comment,
        overwrite=overwrite,
    ):
        with whole_file(out) as aside, tarfile.open(aside, "w", pax_headers={"comment": comment}) as archive:
            if oddities:
                _add(archive, README, _README_TEXT)
            looks = _looks()
            for wnid in wnids:
                with_readme = f"{wnid}/{README}" in odd_names
                _add(
                    archive, f"{wnid}.tar", _class_tar(wnid, looks[wnid], members[wnid], seed, with_readme, on_progress)
                )
    else:
        log.info("%s: finished already; nothing to do", out)
    num_images = num_classes * images_per_class
    return SampleArchive(num_classes, num_images, out.stat().st_size, build_tree(wnids), odd_names)


def _comment_of(path: Path) -> str:
    """Return the comment of a tar; "" for any other file."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.pax_headers.get("comment", "")
    except (tarfile.TarError, OSError):
        return ""


def _check(num_classes: int, images_per_class: int, seed: int, oddities: bool) -> None:
    if not MIN_CLASSES <= num_classes <= len(WNIDS):
        raise ValueError(
            f"{num_classes} classes: a sample archive has {MIN_CLASSES} to {len(WNIDS)}; give a number between"
        )
    if images_per_class < 1:
        raise ValueError(f"{images_per_class} images a class: wanted 1 or more; 60 are enough to learn from")
    if seed < 0:
        raise ValueError(f"seed {seed}: wanted 0 or more")
    if oddities and num_classes * images_per_class < len(ODDITIES):
        raise ValueError(
            f"{num_classes} classes of {images_per_class} images have no room for the {len(ODDITIES)} odd ones; "
            f"give {-(-len(ODDITIES) // num_classes)} images a class or more, or leave out the oddities"
        )


def _looks() -> dict[str, tuple[int, ...]]:
    """Give per wnid its attributes for `draw`: siblings differ in the last, a branch has the first ones alike."""
    tree = build_tree(WNIDS)
    looks: dict[str, tuple[int, ...]] = {}
    for index, wnid in enumerate(tree.wnids):
        parent, level = tree.parents[index], tree.levels[index]
        siblings = tree.children[parent] if parent >= 0 else tree.classes_by_level[0]
        above = looks[tree.wnids[parent]] if parent >= 0 else ()
        # The parent's number shifts the choice: the first shape below `animal` is another than that below `plant`.
        looks[wnid] = (*above, (siblings.index(index) + max(parent, 0)) % NUM_ATTRIBUTES[level])
    return looks


def _placed(wnids: Sequence[str], images_per_class: int, seed: int) -> dict[tuple[str, int], str]:
    """Spread the odd images evenly over the classes, at chance places: (wnid, image index) -> kind."""
    rng = np.random.default_rng([seed, 1])
    spread: dict[tuple[str, int], str] = {}
    shuffled = {wnid: rng.permutation(images_per_class).tolist() for wnid in wnids}
    for position, kind in enumerate(ODDITIES):
        wnid = wnids[position % len(wnids)]
        spread[wnid, shuffled[wnid][position // len(wnids)]] = kind
    return spread


def _members(wnid: str, num_images: int, seed: int, placed: dict[tuple[str, int], str]) -> list[tuple[str, str | None]]:
    """Name a class's images; the odd ones with their kind."""
    # As in the real archive: numbers with gaps and without leading zeros, so that names do not sort by number.
    numbers = np.random.default_rng([seed, 2, int(wnid[1:])]).integers(1, 40, num_images).cumsum().tolist()
    kinds = [placed.get((wnid, index)) for index in range(num_images)]
    return [
        (f"{wnid}_{number} Ente über Wasser (2).JPEG" if kind == "name with spaces" else f"{wnid}_{number}.JPEG", kind)
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def _class_tar(
    wnid: str,
    look: tuple[int, ...],
    members: Sequence[tuple[str, str | None]],
    seed: int,
    with_readme: bool,
    on_progress: Callable[[int], None] | None,
) -> bytes:
    """Draw a class's images and return its tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as class_tar:
        if with_readme:
            _add(class_tar, README, _README_TEXT)
        for index, (name, kind) in enumerate(members):
            rng = np.random.default_rng([seed, 3, int(wnid[1:]), index])
            picture, quality = draw(look, rng), int(rng.choice(QUALITIES))
            _add(class_tar, name, ODDITIES[kind].encode(picture) if kind else _encoded(picture, quality=quality))
            if on_progress is not None:
                on_progress(1)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
