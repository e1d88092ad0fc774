"""The page in Chromium: phone and desktop, light and dark, keyboard, filters, hostile texts, and many examples."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import write_evaluated
from reported import HOSTILE, predictions, write_study

from cotmi_jax.report.page import gather as gathering
from cotmi_jax.report.page.gather import gather
from cotmi_jax.report.page.render import make_page, write_page

pytest.importorskip("playwright", reason="pip install '.[test]' has it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium"),
]
PHONE, DESKTOP = (390, 844), (1280, 900)
ESNLI_TEST = 9824


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Opened:
    """A page in a window of its own, with what it wrote to the console and what it requested."""

    def __init__(self, browser: Any, file: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = file.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("#list .row")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if not any(error):
            assert (self.console, self.requests) == ([], [self.url])

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def count(self) -> int:
        return int(self.page.text_content("#count").partition(" ")[0].replace(",", ""))


def written(folder: Path, *sources: str) -> Path:
    write_page(make_page(gather(sources, None, None, 0.01)), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half-done study of two data sets."""
    folder = tmp_path_factory.mktemp("plain")
    return written(folder, str(write_study(folder / "study")))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    study = write_study(folder / "study", HOSTILE, datasets=(f"jsonl:{HOSTILE}",), size=30)
    path = study / "runs" / "0-dss-0" / "evaluation" / "test" / "predictions.jsonl"
    path.write_text(path.read_text().replace("It follows.", "It follows." + 10_000 * "x"))
    return written(folder, str(study))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_fits_the_screen_in_both_schemes(browser: Any, plain: Path, size: tuple[int, int], scheme: str) -> None:
    with Opened(browser, plain, size, scheme) as opened:
        assert opened.run("document.documentElement.scrollWidth") <= size[0]
        paper, ink = (
            opened.run(f"getComputedStyle(document.body).{each}.match(/\\d+/g).map(Number)")
            for each in ("backgroundColor", "color")
        )
        assert (sum(paper) > 600 > 300 > sum(ink)) if scheme == "light" else (sum(paper) < 200 < 600 < sum(ink))
        # Charts have their colours, and axes that can be read.
        width, colour, font = opened.run(
            "(() => { const chart = document.querySelector('figure svg'), scale = chart.clientWidth / 360;"
            "return [chart.clientWidth, getComputedStyle(chart.querySelector('.c1')).color, 12 * scale]; })()"
        )
        assert 250 < width < size[0] and colour != "rgb(0, 0, 0)" and font >= 9.5
        opened.page.set_viewport_size({"width": 320, "height": 600})
        assert opened.run("document.documentElement.scrollWidth") <= 320


def test_search_and_filters(browser: Any, plain: Path) -> None:
    sets = {each.name: each for each in gather([str(plain.parent / "study")], None, None, 0.01).sets}
    first, second = (
        np.array([[line["correct"] for line in run.predictions.values()] for run in arm.runs])
        for arm in sets["esnli"].arms
    )
    with Opened(browser, plain) as opened:
        page = opened.page
        assert opened.count() == 90
        page.select_option("#set", label="esnli")
        assert opened.count() == 45
        page.select_option("#right", label="cotmi")
        assert opened.count() == int(second.all(axis=0).sum())
        page.select_option("#wrong", label="dss")
        expected = second.all(axis=0) & (~first).all(axis=0)
        assert opened.count() == int(expected.sum()) > 0
        page.select_option("#seed", label="Seed 1")
        assert opened.count() == int((second[1] & ~first[1]).sum())
        assert page.locator("#example .answer").count() == 2  # of each method the run with this seed
        for name in ("right", "wrong"):
            page.select_option(f"#{name}", label="Any method")
        page.fill("#query", "PREMISE 17:")
        assert opened.count() == 1 and "Premise 17: a dog runs." in page.text_content("#example")
        page.fill("#query", "no such text")
        assert opened.count() == 0 and page.is_visible("#none") and page.is_disabled("#next")
        page.fill("#query", "")
        assert opened.count() == 45 and not page.is_visible("#none")


def test_the_keyboard_reaches_every_example(browser: Any, plain: Path) -> None:
    with Opened(browser, plain) as opened:
        page = opened.page
        page.focus("#list")
        for key, position in (("ArrowDown", 2), ("End", 90), ("ArrowUp", 89), ("Home", 1), ("PageDown", None)):
            page.keyboard.press(key)
            chosen = page.locator("#list .row[aria-selected=true]")
            assert chosen.count() == 1
            assert position in (None, int(chosen.get_attribute("aria-posinset")))
            assert page.get_attribute("#list", "aria-activedescendant") == chosen.get_attribute("id")
            assert chosen.locator(".text").text_content() in page.text_content("#example")
        # Everything that can be used has a name, as those who cannot see the page hear it.
        unnamed = opened.run(
            "[...document.querySelectorAll('input,select,button,a,nav,[role=listbox],svg[role=img],[role=region]')]"
            ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
        )
        assert unnamed == 0
        assert page.locator("h1").count() == 1


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_hostile_texts_do_nothing(browser: Any, hostile: Path, size: tuple[int, int]) -> None:
    with Opened(browser, hostile, size) as opened:
        page = opened.page
        for _ in range(30):
            assert opened.run("document.getElementById('example').textContent.includes('onerror')")
            page.keyboard.press("Tab")
            if page.is_disabled("#next"):
                break
            page.click("#next")
        page.fill("#query", "</SCRIPT>")
        assert opened.count() == 30
        page.select_option("#right", index=1)
        assert opened.run("window.hacked") is None
        assert opened.run("document.querySelectorAll('script').length") == 2
        assert opened.run("document.querySelectorAll('img, iframe, object, [onload], [onerror]').length") == 0
        assert opened.run("document.documentElement.scrollWidth") <= size[0]
        assert "{{ 7919 * 7927 }}" in page.text_content("h1")


def test_many_examples_open_and_filter_in_under_a_second(
    browser: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as e-SNLI's test split has, answered by four students.

    A machine that needs more than a third of a second for the page of a few examples has three times as long as that.
    """
    monkeypatch.setattr(gathering, "MEASURES", {})  # they take seconds, and the list of examples reads none
    names = ("dss", "cotmi", "standard", "single_task")
    workdirs = [
        write_evaluated(
            tmp_path / name, predictions(number, ESNLI_TEST, 0.6 + number / 10), objective__name=name, seed=number
        )
        for number, name in enumerate(names)
    ]
    file = written(tmp_path, *workdirs)
    of_few, seconds = [], []
    for _ in range(6):  # other processes may take the processor meanwhile: the quickest counts
        start = time.perf_counter()
        with Opened(browser, plain):
            of_few.append(time.perf_counter() - start)
        start = time.perf_counter()
        with Opened(browser, file) as opened:
            seconds.append(time.perf_counter() - start)
            assert opened.count() == ESNLI_TEST and opened.page.locator("#list .row").count() < 40
            milliseconds = opened.run(
                "(() => { const begin = performance.now(), set = (id, value, type) => {"
                "const input = document.getElementById(id); input.value = value;"
                "input.dispatchEvent(new Event(type)); };"
                "set('query', 'premise 98', 'input'); set('right', '1', 'change'); set('wrong', '0', 'change');"
                "return performance.now() - begin; })()"
            )
            assert 0 < opened.count() < 125
        seconds[-1] = max(seconds[-1], milliseconds / 1000)
        if min(seconds) < 1.0:
            break
    assert min(seconds) < max(1.0, 3 * min(of_few)), (seconds, of_few)
