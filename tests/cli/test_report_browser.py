"""The report in a real browser, Debian's chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from in21k.shards.class_table import read_class_table, write_class_table
from in21k.shards.files import read_json, write_json
from in21k.shards.manifest import REJECTS, TableWriter

from .conftest import run_json

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
        self.page.wait_for_selector(".tile")

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
def hostile_report(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    run_json("report", path, folder / "report.html", "--images", 30)
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
