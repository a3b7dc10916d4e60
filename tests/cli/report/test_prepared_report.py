"""A prepared data set's report: right numbers, equal bytes, and nothing of the data that is taken for markup."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.cli.report.charts import Axis
from in21k.cli.report.markup import brief, byte_size, embedded_json, percent, printable, text
from in21k.cli.report.prepared.numbers import Histogram, count_images, reject_reasons
from in21k.cli.report.prepared.render import MAX_IMAGES, FolderReport, render_prepared
from in21k.cli.report.prepared.sheet import THUMBNAIL_PIXELS, contact_sheet
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.class_table import write_class_table
from in21k.shards.dataset import PreparedSet, read_manifest
from in21k.shards.files.atomic import read_json, write_json
from in21k.shards.manifest import REJECTS, TableWriter

Reseal = Callable[[Path], None]
HOSTILE = (
    "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>\"'&\N{RIGHT-TO-LEFT OVERRIDE}"
)
VOID = {"img", "input", "meta", "br"}


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, raw_archive: Path, select: SelectSettings, image_settings: ImageSettings
) -> PreparedSet:
    """The prepared data set of `raw_archive`, opened; the other tests of commands want its folder."""
    return prepare(
        open_raw_tar(raw_archive), tmp_path_factory.mktemp("set") / "out", select=select, image=image_settings
    )


class Tags(HTMLParser):
    """Reads HTML, and fails where a tag is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.seen[tag] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.seen[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def html_of(report: FolderReport) -> str:
    return "".join(section.html for section in report.sections)


def tags_of(html: str) -> Counter[str]:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    return tags.seen


def make_hostile(path: Path, reseal: Reseal) -> PreparedSet:
    """Put markup wherever a prepared data set holds text of others."""
    prepared = PreparedSet(path)
    rows = [row._replace(name=HOSTILE, definition=HOSTILE) for row in prepared.classes]
    write_class_table(path / "classes.parquet", rows)
    tree = read_json(path / "tree.json")
    write_json(path / "tree.json", {**tree, "names": [HOSTILE] * len(tree["names"])})
    manifest = pq.read_table(path / "manifest.parquet")
    for name, value in (("source_name", HOSTILE), ("source_format", HOSTILE), ("changes", [HOSTILE])):
        column = pa.array([value] * manifest.num_rows, manifest.schema.field(name).type)
        manifest = manifest.set_column(manifest.schema.get_field_index(name), manifest.schema.field(name), column)
    pq.write_table(manifest, path / "manifest.parquet")
    write_rejects(path, [("n01503061", HOSTILE, HOSTILE, HOSTILE), (None, HOSTILE, HOSTILE, HOSTILE)])
    info = read_json(path / "dataset.json")
    info["source"]["name"] = info["settings"]["resizer_version"] = HOSTILE
    write_json(path / "dataset.json", info)
    reseal(path)
    return PreparedSet(path)


def write_rejects(path: Path, rows: list[tuple[str | None, str, str, str]]) -> None:
    with TableWriter(path / "rejects.parquet", REJECTS) as writer:
        writer.write(pa.Table.from_pylist([dict(zip(REJECTS.names, row, strict=True)) for row in rows], schema=REJECTS))


def test_equal_data_give_an_equal_report_wherever_they_lie(prepared: PreparedSet, prepared_copy: Path) -> None:
    report = render_prepared(prepared, num_images=9, seed=3)
    assert render_prepared(PreparedSet(prepared_copy), num_images=9, seed=3) == report
    assert str(prepared.path.parent) not in html_of(report)


def test_every_section_is_well_formed_and_names_what_it_counts(prepared: PreparedSet) -> None:
    report = render_prepared(prepared, num_images=9)
    for section in report.sections:
        tags_of(section.html)
    overview = report.sections[0].html
    assert "<strong>5</strong><small>of 7 seen</small>" in overview
    assert "<strong>67</strong><small>of 74 in the source</small>" in overview
    levels = next(section.html for section in report.sections if section.name == "tree")
    assert [int(n) for n in re.findall(r'"bar-value">(\d+) <small>[\d,]+ images', levels)] == [1, 2, 2]


def test_the_images_are_counted_as_a_slow_reading_counts_them(prepared: PreparedSet) -> None:
    rows = read_manifest(prepared).to_pylist()
    numbers = count_images(prepared)
    assert numbers.num_images == len(rows)
    assert numbers.num_bytes == sum(row["num_bytes"] for row in rows)
    assert numbers.formats == Counter(row["source_format"] for row in rows)
    assert numbers.changes == Counter(change for row in rows for change in row["changes"])
    assert numbers.num_as_they_were == sum(not row["changes"] for row in rows)
    assert numbers.stored_pixels.total == numbers.sides.counts.sum() == len(rows)
    edges = numbers.sides.edges
    for row in rows:
        column, line = (int((edges <= row[side]).sum()) - 1 for side in ("source_width", "source_height"))
        assert numbers.sides.counts[column, line] > 0


@given(st.lists(st.integers(1, 2**31 - 1), min_size=1), st.sampled_from([1, 4, 8, 24]))
def test_a_histogram_counts_every_value_in_a_bin_that_holds_it(values: list[int], per_octave: int) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    bins = histogram.bins(per_octave)
    assert [count for *_, count in bins] == [sum(low <= value < high for value in values) for low, high, _ in bins]
    assert sum(count for *_, count in bins) == len(values)
    median = sorted(values)[(len(values) - 1) // 2]
    assert median <= histogram.quantile(0.5) < 1.03 * median


def test_warnings_are_counted_without_their_numbers(prepared_copy: Path, reseal: Reseal) -> None:
    manifest = pq.read_table(prepared_copy / "manifest.parquet")
    changes = [["I;16 to L", f"warning: read {row} of 8 bytes"] for row in range(manifest.num_rows)]
    place = manifest.schema.get_field_index("changes")
    manifest = manifest.set_column(place, manifest.schema.field("changes"), pa.array(changes))
    pq.write_table(manifest, prepared_copy / "manifest.parquet", row_group_size=10)
    reseal(prepared_copy)
    assert count_images(PreparedSet(prepared_copy)).changes == {"I;16 to L": 67, "warning: read … of … bytes": 67}


@pytest.mark.parametrize("name", ["num_bytes", "height", "source_width"])
def test_an_image_of_no_bytes_or_pixels_is_refused_by_the_manifests_name(
    prepared_copy: Path, reseal: Reseal, name: str
) -> None:
    manifest = pq.read_table(prepared_copy / "manifest.parquet")
    column = manifest.schema.get_field_index(name)
    values = pa.array([0, *manifest[name].to_pylist()[1:]], manifest.schema.field(name).type)
    pq.write_table(manifest.set_column(column, manifest.schema.field(name), values), prepared_copy / "manifest.parquet")
    reseal(prepared_copy)
    with pytest.raises(ValueError, match=rf"manifest\.parquet: an image has the {name} 0; run `in21k verify`"):
        count_images(PreparedSet(prepared_copy))


def test_text_of_the_data_is_never_markup(prepared: PreparedSet, prepared_copy: Path, reseal: Reseal) -> None:
    plain = tags_of(html_of(render_prepared(prepared, num_images=9)))
    report = render_prepared(make_hostile(prepared_copy, reseal), num_images=9)
    html = html_of(report)
    hostile = tags_of(html)
    assert (hostile["script"], hostile["img"]) == (plain["script"], plain["img"]) == (1, 9)
    assert "<script>window" not in html
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html + report.subject
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html)[0])
    assert set(data["names"]) == {printable(HOSTILE)}


@given(st.text())
def test_any_text_survives_being_embedded(words: str) -> None:
    assert "<" not in text(words)
    embedded = embedded_json({"words": words})
    assert embedded.count("<") == 2
    assert json.loads(embedded.partition(">")[2].removesuffix("</script>")) == {"words": words}


def test_rejects_are_counted_by_reason_with_a_few_examples(prepared_copy: Path, reseal: Reseal) -> None:
    rows = [("n01503061", f"bird_{n}.JPEG", "truncated", "ends early") for n in range(9)]
    rows += [(None, "README", "no class", "no class tar"), ("n01858441", "x", "empty", "0 bytes")]
    write_rejects(prepared_copy, rows)
    reseal(prepared_copy)
    truncated, empty, no_class = reject_reasons(PreparedSet(prepared_copy))
    assert (truncated.reason, truncated.count) == ("truncated", 9)
    assert [member for _, member, _ in truncated.examples] == ["bird_0.JPEG", "bird_4.JPEG", "bird_8.JPEG"]
    assert empty.examples == [("swan", "x", "0 bytes")]
    assert no_class.examples == [("", "README", "no class tar")]


def test_the_contact_sheet_is_drawn_by_seed_from_every_branch(
    prepared: PreparedSet, decode: Callable[[bytes], Image.Image]
) -> None:
    rows = contact_sheet(prepared, 12, seed=1)
    assert contact_sheet(prepared, 12, seed=1) == rows
    assert contact_sheet(prepared, 12, seed=2) != rows
    assert {row.path[0] for row in rows} == {"animal"}
    assert sum(len(row.images) for row in rows) == 12
    names = {row["source_name"]: row["wnid"] for row in read_manifest(prepared).to_pylist() if row["split"] == "train"}
    classes = {row.wnid: row.name for row in prepared.classes}
    for image in (image for row in rows for image in row.images):
        assert classes[names[image.source_name]] == image.class_name
        picture = decode(base64.b64decode(image.uri.removeprefix("data:image/jpeg;base64,")))
        assert max(picture.size) <= THUMBNAIL_PIXELS


def test_a_contact_sheet_of_more_images_than_there_are_shows_them_all(prepared: PreparedSet) -> None:
    rows = contact_sheet(prepared, MAX_IMAGES, seed=0)
    assert [len(row.images) for row in rows] == [row.num_images for row in rows]


def test_without_validation_dropped_classes_rejects_or_images_and_from_a_stream_there_is_a_report_too(
    prepared: PreparedSet, prepared_copy: Path, reseal: Reseal
) -> None:
    kept = [row._replace(num_raw=row.num_train, num_val=0) for row in prepared.classes if row.kept]
    write_class_table(prepared_copy / "classes.parquet", kept)
    pq.write_table(read_manifest(prepared).slice(0, prepared.num_samples["train"]), prepared_copy / "manifest.parquet")
    info = read_json(prepared_copy / "dataset.json")
    info["source"]["num_bytes"] = None
    del info["counts"]["splits"]["val"]
    write_json(prepared_copy / "dataset.json", info)
    reseal(prepared_copy)
    html = html_of(render_prepared(PreparedSet(prepared_copy), num_images=0))
    tags_of(html)
    assert "Every class was kept; 100 % of the 52 images are stored." in html
    assert "The source was a stream" in html
    assert "No rejects." in html


def test_the_cut_is_drawn_only_where_a_threshold_chose_the_classes(
    prepared: PreparedSet, prepared_copy: Path, reseal: Reseal
) -> None:
    assert "the cut: 6 images" in html_of(render_prepared(prepared, num_images=0))
    info = read_json(prepared_copy / "dataset.json")
    info["settings"]["rare_threshold"] = 12  # and yet smaller classes were kept
    write_json(prepared_copy / "dataset.json", info)
    reseal(prepared_copy)
    html = html_of(render_prepared(PreparedSet(prepared_copy), num_images=0))
    assert "the cut:" not in html
    assert "5 kept" in html
    assert "2 dropped" in html


def test_a_damaged_data_set_is_refused_with_the_way_out(
    prepared: PreparedSet, prepared_copy: Path, tmp_path: Path, reseal: Reseal
) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(prepared_copy, tmp_path / name))

    short = damaged("short")
    pq.write_table(pq.read_table(short / "manifest.parquet").slice(1), short / "manifest.parquet")
    reseal(short)
    with pytest.raises(ValueError, match=r"66 rows where dataset.json says 67; run `in21k verify`"):
        render_prepared(PreparedSet(short))
    other_tree = damaged("other_tree")
    tree = read_json(other_tree / "tree.json")
    write_json(other_tree / "tree.json", {**tree, "wnids": [f"{wnid}0" for wnid in tree["wnids"]]})
    reseal(other_tree)
    with pytest.raises(ValueError, match=r"classes.parquet and tree.json differ"):
        render_prepared(PreparedSet(other_tree))
    other_bytes = damaged("other_bytes")
    for tar in (other_bytes / "train").iterdir():
        tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8", b"\xff\xd7"))
    with pytest.raises(ValueError, match=r"is not what was written; run `in21k verify`"):
        render_prepared(PreparedSet(other_bytes))
    no_table = damaged("no_table")
    (no_table / "manifest.parquet").write_bytes(b"no table")
    reseal(no_table)
    with pytest.raises(ValueError, match="not readable as a Parquet table"):
        render_prepared(PreparedSet(no_table))
    with pytest.raises(ValueError, match="401 images: wanted 0 to 400"):
        render_prepared(prepared, num_images=401)


@pytest.mark.parametrize(
    ("axis", "ticks", "middle"),
    [
        (Axis.linear(1.08, ""), (0, 0.5, 1.0), 0.54),
        (Axis.linear(21_841, ""), (0, 5000, 10000, 15000, 20000), 10920.5),
        (Axis.log(1, 10_000, ""), (1, 10, 100, 1000, 10000), 100),
        (Axis.log(20, 2_000, ""), (30, 100, 300, 1000), 200),
        (Axis.log(100, 900, ""), (100, 200, 500), 300),
    ],
)
def test_an_axis_names_a_few_round_values(axis: Axis, ticks: tuple[float, ...], middle: float) -> None:
    assert axis.ticks == pytest.approx(ticks)
    assert axis.at(middle) == pytest.approx(0.5)
    assert (axis.at(0), axis.at(1e12)) == (0, 1)


def _not_tiny(value: float) -> float:
    """Return 0 for what lies too near it for a share of it to be told apart."""
    return value if abs(value) > 1e-30 else 0.0


@given(st.floats(-1e30, 1e30).map(_not_tiny), st.floats(0, 1e30).map(_not_tiny))
def test_an_axis_of_any_length_draws(low: float, length: float) -> None:
    axes = [Axis.linear(low + length, "", low=low)]
    if low > 0:
        axes.append(Axis.log(low, low + length, ""))
    for axis in axes:
        assert (axis.at(axis.low), axis.at(axis.high)) == (0, 1)
        assert 0 <= axis.at(low) <= axis.at(low + length) <= 1
    assert len(axes[0].ticks) <= 7
    margin = 1e-6 * (axes[0].high - axes[0].low)
    assert all(axes[0].low - margin <= tick <= axes[0].high + margin for tick in axes[0].ticks)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (brief(950), "950"),
        (brief(12_358_731), "12.4M"),
        (byte_size(999), "999 B"),
        (byte_size(1_311_000_000_000), "1.31 TB"),
        (percent(1, 3), "33.3 %"),
        (percent(1, 1_000_000), "< 0.01 %"),
        (percent(999_999, 1_000_000), "> 99.9 %"),
        (percent(5, 5), "100 %"),
        (percent(0, 0), "0 %"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown: str, wanted: str) -> None:
    assert shown == wanted
