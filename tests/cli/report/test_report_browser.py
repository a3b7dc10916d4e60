"""The report in a real browser, Debian's chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from in21k.shards.class_table import read_class_table, write_class_table
from in21k.shards.files.atomic import read_json, write_json
from in21k.shards.manifest import REJECTS, TableWriter

from ..conftest import run_json

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"
PHONE = {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and whatever its console and its scripts complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.complaints: list[str] = []
        self._context = browser.new_context(offline=True, **context)
        self.page = self._context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".tile, .curves .pointer", state="attached")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def crumbs(self) -> list[str]:
        return self.page.locator(".crumbs li").all_inner_texts()

    def tile(self, label: str) -> Any:
        """The tile whose label begins so."""
        return self.page.locator(f'.tile[aria-label^="{label}"]')

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.fixture(scope="module")
def report(prepared: Path) -> Path:
    out = prepared.parent / "browser.html"
    run_json("report", prepared, out, "--images", 30)
    return out


@pytest.fixture(scope="module")
def hostile_report(prepared: Path, tmp_path_factory: pytest.TempPathFactory, reseal: Callable[[Path], None]) -> Path:
    """A report of a data set that holds markup in names of files, of classes and of the source."""
    folder = tmp_path_factory.mktemp("hostile")
    path = Path(shutil.copytree(prepared, folder / "prepared"))
    rows = read_class_table(path / "classes.parquet")
    write_class_table(path / "classes.parquet", [row._replace(name=HOSTILE, definition=HOSTILE) for row in rows])
    tree = read_json(path / "tree.json")
    write_json(path / "tree.json", {**tree, "names": [HOSTILE] * len(tree["names"])})
    manifest = pq.read_table(path / "manifest.parquet")
    place = manifest.schema.get_field_index("source_name")
    names = pa.array([HOSTILE] * manifest.num_rows)
    pq.write_table(manifest.set_column(place, "source_name", names), path / "manifest.parquet")
    with TableWriter(path / "rejects.parquet", REJECTS) as writer:
        reject = {"wnid": None, "name": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}
        writer.write(pa.Table.from_pylist([reject], schema=REJECTS))
    info = read_json(path / "dataset.json")
    info["source"]["name"] = HOSTILE
    write_json(path / "dataset.json", info)
    reseal(path)
    run_json("report", path, folder / "report.html", "--images", 30)
    return folder / "report.html"


@pytest.fixture(scope="module")
def run_report(trained: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs with all that their networks answer; the second has half of the steps."""
    folder = tmp_path_factory.mktemp("runs")
    other = Path(shutil.copytree(trained, folder / "shorter"))
    lines = (other / "log.jsonl").read_text().splitlines()
    (other / "log.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    (other / "metrics.json").unlink()
    run_json("report", trained, other, folder / "report.html", "--data", shards, "--images", 4)
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile_run_report(
    trained: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory, reseal: Callable[[Path], None]
) -> Path:
    """A report of a run that holds markup in its name, its classes, its settings and the images that it was lost at."""
    folder = tmp_path_factory.mktemp("hostile_run")
    run = Path(shutil.copytree(trained, folder / HOSTILE.replace("/", "")))
    data = Path(shutil.copytree(shards, folder / "shards"))
    for path in (run / "tree.json", data / "tree.json"):
        tree = read_json(path)
        write_json(path, {**tree, "names": [HOSTILE] * len(tree["names"])})
    reseal(data)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("trackers:", f'init: "{HOSTILE}"\ntrackers:'))
    write_json(run / "nonfinite.json", {"step": 9, "ranks": [{"rank": 0, "loss": HOSTILE, "samples": [HOSTILE]}]})
    run_json("report", run, folder / "report.html", "--data", data, "--images", 4)
    return folder / "report.html"


def test_the_page_renders_and_a_branch_opens_by_a_click_and_closes_by_the_path(browser: Any, report: Path) -> None:
    with Visit(browser, report) as visit:
        assert visit.page.locator("section").count() == 8
        visit.page.locator("#images").scroll_into_view_if_needed()
        visit.page.wait_for_function("[...document.images].some((image) => image.naturalWidth > 0)")
        tops = visit.page.locator(".tile").count()
        assert visit.crumbs() == ["all classes"]
        visit.tile("animal: ").click()
        assert visit.crumbs() == ["all classes", "animal"]
        assert visit.tile("vertebrate: ").count() == 1
        visit.tile("vertebrate: ").click()
        assert visit.crumbs() == ["all classes", "animal", "vertebrate"]
        assert "animals having a bony or cartilaginous skeleton" in visit.page.locator(".about").inner_text()
        visit.page.locator(".crumbs button").first.click()
        assert visit.crumbs() == ["all classes"]
        assert visit.page.locator(".tile").count() == tops
        assert visit.complaints == []


def test_the_map_works_by_keyboard(browser: Any, report: Path) -> None:
    with Visit(browser, report) as visit:
        visit.page.locator(".tile").first.focus()
        assert visit.focused().startswith("animal: ")
        visit.page.keyboard.press("Enter")
        assert visit.crumbs() == ["all classes", "animal"]
        first = visit.focused()
        visit.page.keyboard.press("ArrowRight")
        visit.page.keyboard.press("ArrowDown")
        assert visit.focused() != first
        visit.page.keyboard.press("Escape")
        assert visit.crumbs() == ["all classes"]
        assert visit.focused().startswith("animal: ")
        assert visit.complaints == []


def test_a_class_is_found_by_its_name(browser: Any, report: Path) -> None:
    with Visit(browser, report) as visit:
        visit.page.locator(".find input").fill("bird")
        visit.page.keyboard.press("Enter")
        assert visit.crumbs() == ["all classes", "animal", "vertebrate"]
        assert visit.focused().startswith("bird: ")
        assert visit.page.locator(".found").is_hidden()
        assert visit.complaints == []


def test_names_that_hold_markup_are_shown_and_never_run(browser: Any, hostile_report: Path) -> None:
    with Visit(browser, hostile_report) as visit:
        visit.page.locator(".tile").first.click()
        visit.page.locator(".tile").last.hover()
        visit.page.locator(".find input").fill("script")
        assert visit.page.locator(".found button").count() > 0
        assert visit.page.evaluate("window.owned") is None
        assert visit.page.locator("img[src=x]").count() == 0
        assert visit.page.locator("h1").inner_text() == HOSTILE
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Any, report: Path, hostile_report: Path, scheme: str
) -> None:
    for path in (report, hostile_report):
        with Visit(browser, path, viewport=PHONE, has_touch=True, color_scheme=scheme) as visit:
            for summary in visit.page.locator("summary").all():
                summary.tap()
            visit.page.locator(".tile").first.tap()
            assert len(visit.crumbs()) == 2
            assert visit.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
            assert visit.complaints == []


def readout(visit: Visit, chart: int) -> list[str]:
    return visit.page.locator(".readout").nth(chart).locator("strong, .at").all_inner_texts()


def test_curves_are_read_off_together_at_the_pointer_and_by_keyboard(browser: Any, run_report: Path) -> None:
    with Visit(browser, run_report) as visit:
        first = visit.page.locator(".curves .area").first
        first.scroll_into_view_if_needed()
        at_the_end = readout(visit, 0), readout(visit, 1)
        assert at_the_end[0][-1] == "at the end"
        box = first.bounding_box()
        visit.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
        there = readout(visit, 0)
        assert there[-1].startswith("step ")
        assert there[:-1] != at_the_end[0][:-1]
        assert readout(visit, 1)[-1] == there[-1]
        visit.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 20)
        assert readout(visit, 0)[1] == "–"  # the second run has no such step
        visit.page.mouse.move(0, 0)
        assert (readout(visit, 0), readout(visit, 1)) == at_the_end
        first.focus()
        for _ in range(30):
            visit.page.keyboard.press("ArrowLeft")
        by_key = readout(visit, 0)
        assert by_key[-1].startswith("step ")
        visit.page.keyboard.press("Tab")
        assert readout(visit, 0) == at_the_end[0]
        assert visit.complaints == []


def test_a_branch_is_picked_out_of_its_map_and_of_no_other(browser: Any, run_report: Path) -> None:
    with Visit(browser, run_report) as visit:
        maps, button = visit.page.locator(".scatter"), visit.page.locator(".branches button").first
        assert maps.count() == 2
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        picked = maps.first.locator("path.picked")
        assert 0 < picked.count() < maps.first.locator("path").count()
        assert picked.count() == maps.first.locator("path.branch-0").count()
        assert maps.nth(1).locator("path.picked").count() == 0
        button.click()
        assert picked.count() == 0
        assert visit.complaints == []


def test_the_images_of_a_run_are_there(browser: Any, run_report: Path) -> None:
    with Visit(browser, run_report) as visit:
        for section in ("#mistakes", "#looks"):
            images = visit.page.locator(f"{section} img")
            assert images.count() > 0
            images.last.scroll_into_view_if_needed()
            visit.page.wait_for_function(
                "(section) => [...document.querySelectorAll(section + ' img')].at(-1).naturalWidth > 0", arg=section
            )
        assert visit.complaints == []


def test_markup_in_a_run_is_shown_and_never_run(browser: Any, hostile_run_report: Path) -> None:
    with Visit(browser, hostile_run_report) as visit:
        visit.page.locator(".branches button").first.click()
        visit.page.locator(".curves .area").first.hover()
        assert visit.page.evaluate("window.owned") is None
        assert visit.page.locator("img[src=x]").count() == 0
        assert visit.page.locator("h1").inner_text() == HOSTILE.replace("/", "")
        for section in ("results", "looks", "mistakes", "run-settings"):
            assert HOSTILE in visit.page.locator(f"#{section}").inner_text()
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_no_run_is_wider_than_the_screen(
    browser: Any, run_report: Path, hostile_run_report: Path, scheme: str
) -> None:
    for path in (run_report, hostile_run_report):
        with Visit(browser, path, viewport=PHONE, has_touch=True, color_scheme=scheme) as visit:
            for summary in visit.page.locator("summary").all():
                summary.tap()
            visit.page.locator(".curves .area").first.tap()
            assert readout(visit, 0)[-1].startswith("step ")
            assert visit.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
            assert visit.complaints == []


def long_names(folder: Path, name: str) -> None:
    """Give every class of a data set or run, and what it was made from, a name."""
    tree = read_json(folder / "tree.json")
    write_json(folder / "tree.json", {**tree, "names": [f"{name}{n}" for n in range(len(tree["names"]))]})
    if (folder / "classes.parquet").exists():
        rows = read_class_table(folder / "classes.parquet")
        rows = [row._replace(name=f"{name}{n}", definition=name) for n, row in enumerate(rows)]
        write_class_table(folder / "classes.parquet", rows)
    if (folder / "rejects.parquet").exists():
        with TableWriter(folder / "rejects.parquet", REJECTS) as writer:
            reject = {"wnid": None, "name": name, "reason": name, "detail": name}
            writer.write(pa.Table.from_pylist([reject], schema=REJECTS))
    if (folder / "config.yaml").exists():
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("init: null", f"init: {name}"))


@pytest.mark.parametrize("name", ["n" * 200, "\u91d1" * 80, "a-b_c." * 30])
def test_a_page_is_as_wide_as_a_phone_whatever_names_hold(
    browser: Any, prepared: Path, trained: Path, shards: Path, tmp_path: Path, name: str, reseal: Callable[[Path], None]
) -> None:
    folders = [Path(shutil.copytree(item, tmp_path / f"{name}{n}")) for n, item in enumerate((prepared, trained))]
    data = Path(shutil.copytree(shards, tmp_path / "shards"))
    for folder in (*folders, data):
        long_names(folder, name)
    for folder in (folders[0], data):
        reseal(folder)
    run_json("report", *folders, tmp_path / "report.html", "--data", data, "--images", 4)
    for width in (390, 320):
        with Visit(
            browser, tmp_path / "report.html", viewport={"width": width, "height": 844}, is_mobile=True
        ) as visit:
            for summary in visit.page.locator("summary").all():
                summary.click()
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width
