"""The report in a real Chromium: nothing fails, filters work by click and key, axe-core finds no serious fault."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from report_runs import hostile_run, record_events

from seekr_cl.report.html.page import write_report
from seekr_cl.system.run_record import RECORD, append_event

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; make test installs it")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = (380, 900, 1600)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("SEEKR_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here; install Debian's chromium, or set SEEKR_CHROMIUM to one")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages about one run, about several, and about a hostile one."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / f"{m}{s}", m, s, final) for m, final in (("seqft", 0.1), ("seekr", 0.8)) for s in (0, 1)]
    for event in record_events(["a", "b", "c"]):
        append_event(runs[0] / RECORD, event)
    asked = {"one": runs[:1], "several": runs[::2], "hostile": [hostile_run(folder / "hostile")]}
    for name, folders in asked.items():
        write_report(folders, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in asked}


@contextlib.contextmanager
def opened(browser: Any, path: Path, width: int = 900, scheme: str = "light") -> Iterator[Any]:
    """The page, offline; whatever the console says or asks of the network is a failure."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    page.goto(path.as_uri())
    try:
        yield page
        assert said == []
    finally:
        context.close()


@pytest.mark.parametrize("name", ["one", "several", "hostile"])
def test_no_serious_fault_and_no_overflow(browser: Any, pages: dict[str, Path], name: str) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, pages[name], 380, scheme) as page:
            page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert [
                (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in serious
            ] == []
            assert page.evaluate("window.harmed") is None


def visible(page: Any) -> list[str]:
    return [one.inner_text() for one in page.query_selector_all(".example") if one.is_visible()]


def test_filters_by_click(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        count = page.locator("[data-count]")
        whole = count.inner_text()
        assert len(visible(page)) == 12
        page.locator("[data-more]").click()
        assert len(visible(page)) == 36
        page.locator('[data-filter="task"]').select_option(label="b")
        shown = visible(page)
        assert shown
        assert all("lost b" in text or "gained b" in text for text in shown)
        page.locator('[data-filter="change"]').select_option("gained")
        assert visible(page) == []
        assert count.inner_text().startswith("0 of ")
        page.locator("form button[type=reset]").click()
        playwright.expect(count).to_have_text(whole)
        page.locator('[data-filter="text"]').fill("B 17")
        assert all("b 17" in text for text in visible(page))
        assert page.locator("a[href='#run1-heads'], a[href='#run1-cost']").count() == 1
        page.locator("#contents a", has_text="Provenance").click()
        assert page.url.endswith("#run1-provenance")


def test_filters_by_key(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.dataset.filter === 'text'"):
                break
        page.keyboard.type("a 1")
        shown = visible(page)
        assert shown
        assert all("a 1" in text for text in shown)
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.selectedOptions[0].text") == "b"
        assert visible(page) == []
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert len(visible(page)) == 12


def test_without_scripts_everything_is_there(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["one"].as_uri())
    assert len(visible(page)) == len(page.query_selector_all(".example")) > 12
    context.close()


def test_a_link_unfolds_its_run(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["several"]) as page:
        assert page.locator("details.run[open]").count() == 0
        page.locator(".verdicts a").nth(1).click()
        page.locator("details.run").nth(1).locator("table.matrix").wait_for(state="visible")


def test_prints_whole(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["several"]) as page:
        page.emulate_media(media="print")
        assert not page.locator(".filters").first.is_visible()
        assert len(page.pdf()) > 20_000


def test_a_page_of_a_run_that_goes_on_reloads(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    write_report([pages["one"].parent / "seqft0"], tmp_path / "live.html", reload=1)
    with opened(browser, tmp_path / "live.html") as page:
        with page.expect_navigation():
            pass
        page.locator("#reload").uncheck()
        page.evaluate("window.former = true")
        page.wait_for_timeout(2500)
        assert page.evaluate("window.former")
