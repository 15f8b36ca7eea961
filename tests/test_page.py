"""The page in a browser: what a reader can do with it, with hands, keyboard or none of the scripts.

Needs Playwright and a Chromium on the PATH (Debian: apt-get install chromium); skipped where one is missing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from synthetic import add

from adbench.report import writer as report
from adbench.report.figures.plot import Plot

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

INJECTION = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\u2028\" onclick=\"x"
METRICS = {"clean": 0.85, "pgd20": 0.52, "aa": 0.48}
WHITE_BOX = "#whitebox_cifar10"
LAPTOP, PHONE, WIDE = (1280, 800), (390, 844), (1920, 1080)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, students and teachers, three seeds; one method failed, one has a name that is an attack."""
    results = tmp_path_factory.mktemp("results")
    for teacher, strong in (("weak", 0.5), ("strong", 0.6)):
        for dataset in ("cifar10", "digits"):
            add(
                results,
                kind="teacher",
                dataset=dataset,
                label=teacher,
                student="wrn-10-2",
                seed=None,
                metrics={name: value + strong - 0.48 for name, value in METRICS.items()},
                outcomes=False,
            )
        for student in ("rn18", "mn-v2"):
            for place, method in enumerate(("ard", "rslad", "adaad", "smaraad")):
                for seed in range(3):
                    worth = 0.02 * ((place * 3 + 1) % 4) + 0.1 * (strong - 0.5) - 0.001 * seed * (place + 1)
                    metrics = {name: value + worth for name, value in METRICS.items()}
                    add(
                        results,
                        dataset="cifar10",
                        student=student,
                        teacher=teacher,
                        method=method,
                        seed=seed,
                        metrics=metrics,
                        outcomes=False,
                    )
    add(results, dataset="cifar10", student="rn18", method="pgd-at", metrics=METRICS, outcomes=False)
    add(results, dataset="cifar10", student="rn18", teacher="weak", method="iad", error=f"out of memory {INJECTION}")
    add(results, dataset="digits", student="cnn-16", teacher="weak", method="ard", metrics=METRICS, outcomes=False)
    add(
        results,
        dataset="digits",
        student="cnn-16",
        teacher="weak",
        method="mine",
        label=INJECTION,
        metrics={"clean": 0.7, "pgd20": 0.4, "aa": 0.3},
        outcomes=False,
    )
    return results


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page with space")
    report.write(results, out, formats=("html",))
    return out / "index.html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=list(ARGUMENTS))
        yield launched
        launched.close()


class Visit:
    """A page open in a context of its own, cut off from the network, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int] = LAPTOP, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(5000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def settle(self) -> None:
        """Wait until what was asked for has been drawn."""
        self.page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(done), 30))")

    def column(self, title: str, table: str = WHITE_BOX, body: int = 1) -> list[str]:
        """What one column shows in one block of rows, from top to bottom."""
        script = """([table, title, body]) => {
            const node = document.querySelector(table + " table");
            const head = [...node.querySelectorAll("thead tr:last-child th")].find((th) => th.textContent === title);
            const rows = [...node.tBodies[body - 1].querySelectorAll("tr:not(.block)")];
            return rows.filter((row) => row.offsetParent).map((row) => row.cells[head.cellIndex].textContent.trim());
        }"""
        return list(self.page.evaluate(script, [table, title, body]))


@pytest.fixture(scope="module")
def opened(browser: Any, written: Path) -> Iterator[Visit]:
    """One visit for the tests that leave the page as they found it."""
    visit = Visit(browser, written)
    yield visit
    visit.context.close()


@pytest.fixture
def visits(browser: Any, written: Path) -> Iterator[Any]:
    made: list[Visit] = []

    def visit(*args: Any, **options: Any) -> Visit:
        made.append(Visit(browser, written, *args, **options))
        return made[-1]

    yield visit
    for each in made:
        each.context.close()


def test_it_asks_for_nothing_but_itself_and_complains_of_nothing(opened: Visit, written: Path) -> None:
    opened.page.locator("figure.drawn").first.scroll_into_view_if_needed()
    opened.settle()
    assert [url for url in opened.requests if not url.startswith("data:")] == [written.as_uri()]
    assert opened.complaints == []
    loaded = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert opened.page.evaluate(loaded), "every picture is a picture"


def test_a_heading_sorts_its_column_within_each_block(opened: Visit) -> None:
    def numbers() -> list[float]:
        return [float(re.split("[ †]", text)[0]) for text in opened.column("AA") if text[0].isdigit()]

    before = opened.column("Method")
    heading = opened.page.locator(f"{WHITE_BOX} thead th", has_text="AA").first
    assert heading.get_attribute("aria-sort") is None
    assert numbers() != sorted(numbers(), reverse=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert opened.column("Method")[-1] == "IAD", "what has no number stays last"
    assert "descending" in opened.page.locator("#said").inner_text()
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    assert opened.column("Method")[-1] == "IAD"
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") is None
    assert opened.column("Method") == before


def test_filters_leave_what_they_ask_for_and_say_how_much(opened: Visit) -> None:
    page, form = opened.page, opened.page.locator("#filters")
    shown = page.locator(".bar .shown")
    everything = shown.inner_text()
    assert re.fullmatch(r"\d+ rows", everything)
    form.get_by_label("Method").select_option("RSLAD")
    opened.settle()
    assert opened.column("Method") == ["RSLAD"]
    assert re.fullmatch(r"\d+ of \d+ rows", shown.inner_text())
    form.get_by_label("Teacher").select_option("strong")
    opened.settle()
    heads = page.locator(f"{WHITE_BOX} thead th:visible").all_inner_texts()
    assert [head for head in heads if head.startswith("Teacher")] == ["Teacher strong"]
    assert len(page.locator(f"{WHITE_BOX} tbody tr:visible td:visible").all()) == 2 * len(METRICS)
    form.get_by_label("Data set").select_option("digits")
    opened.settle()
    assert not page.locator(WHITE_BOX).is_visible()
    assert page.locator("section[aria-labelledby=white-box] .none").is_visible(), "the section says that it is empty"
    form.get_by_role("button", name="Show all").click()
    opened.settle()
    assert shown.inner_text() == everything
    form.get_by_role("searchbox").fill("mn-v2 adaad")
    opened.settle()
    assert page.locator(f"{WHITE_BOX} tbody tr:visible th[scope=row]").all_inner_texts() == ["AdaAD"]
    assert shown.get_attribute("role") == "status"
    form.get_by_role("searchbox").fill("no such row")
    opened.settle()
    assert shown.inner_text().startswith("0 of ")
    form.get_by_role("searchbox").fill("")
    opened.settle()
    assert shown.inner_text() == everything


def test_hovering_over_a_value_tells_what_stands_behind_it(opened: Visit, results: Path) -> None:
    card = opened.page.locator("#card")
    row = opened.page.locator(f"{WHITE_BOX} tbody tr", has_text="RSLAD").first
    row.locator("td").last.hover()
    told = card.inner_text()
    assert "1\u202f000 test images" in told
    assert "95% interval over seeds" in told
    assert "Each seed" in told
    assert "AA within ε = 8/255 in L∞" in told
    paths = card.locator("code").all_inner_texts()
    assert len(paths) == 3
    records = [json.loads((results / path).read_text()) for path in paths]
    assert {record["label"] for record in records} == {"RSLAD"}
    mean = 100 * sum(record["metrics"]["aa"]["value"] for record in records) / 3
    assert card.locator(".value").inner_text().startswith(f"{mean:.2f}")
    opened.page.mouse.move(0, 0)
    card.wait_for(state="hidden")


def test_every_value_can_be_reached_and_asked_by_keyboard(opened: Visit) -> None:
    page, card = opened.page, opened.page.locator("#card")
    buttons = page.locator(f"{WHITE_BOX} [data-e] button")
    assert len([b for b in buttons.all() if b.get_attribute("tabindex") == "0"]) == 1, "one stop a table"
    page.locator(f"{WHITE_BOX} thead button").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('td > button')")
    first = card.locator(".value").inner_text()
    page.keyboard.press("ArrowRight")
    assert card.locator(".of").inner_text().count(" · ") == 3
    assert card.locator(".value").inner_text() != first
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert card.locator(".value").inner_text() == first
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "card"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.mouse.move(5, 5)
    page.wait_for_timeout(250)
    assert card.is_visible(), "kept until it is sent away"
    page.keyboard.press("Escape")
    assert not card.is_visible()


def test_the_first_stop_skips_to_the_results(visits: Any) -> None:
    page = visits().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ("none", ""), "focus can be seen"


def test_a_tap_shows_and_keeps_what_stands_behind_a_value(visits: Any) -> None:
    visit = visits(PHONE, has_touch=True, is_mobile=True)
    card = visit.page.locator("#card")
    visit.page.locator(f"{WHITE_BOX} td button").first.tap()
    assert "test images" in card.inner_text()
    box = card.bounding_box()
    assert (box["x"], box["width"]) == (0, PHONE[0]), "a sheet at the bottom"
    visit.page.locator("h1").tap()
    assert not card.is_visible()


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(visits: Any) -> None:
    def darkness(page: Any) -> bool:
        return bool(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 80"))

    page = visits(color_scheme="dark").page
    assert darkness(page)
    toggle = page.locator("button.theme")
    assert toggle.inner_text() == "Theme: auto"
    toggle.click()
    assert toggle.inner_text() == "Theme: light"
    assert not darkness(page)
    page.reload()
    assert not darkness(page)
    toggle.click()
    page.emulate_media(color_scheme="light")
    assert darkness(page)
    toggle.click()
    assert not darkness(page), "auto again"


def test_print_has_the_drawn_figures_all_columns_and_no_controls(visits: Any) -> None:
    visit = visits(color_scheme="dark")
    page = visit.page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator(".bar").is_visible()
    assert not page.locator(".chart").first.is_visible()
    assert page.locator("figure.drawn img.day").first.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_nothing_from_a_record_is_ever_run(opened: Visit) -> None:
    page = opened.page
    assert page.evaluate("window.broken") is None
    assert page.locator("th", has_text=INJECTION[:20]).first.is_visible()
    assert "<img src=x" in page.locator(".failures").inner_text()
    page.locator("tr", has_text=INJECTION[:20]).first.locator("td[data-e]").first.hover()
    assert "window.broken" in page.locator("#card .of").inner_text()
    page.mouse.move(0, 0)
    # Even markup that found a way in would not run: the policy lets no script through but the page's own.
    page.evaluate("""() => {
        document.body.insertAdjacentHTML("beforeend", "<img id=intruder src='data:,' onerror='window.broken = 3'>");
        const script = document.createElement("script");
        script.textContent = "window.broken = 4";
        document.body.append(script);
    }""")
    opened.settle()
    assert page.evaluate("window.broken") is None
    assert any("Content Security Policy" in text for text in opened.complaints)
    page.evaluate("document.getElementById('intruder').remove()")
    opened.complaints.clear()


@pytest.mark.parametrize(("size", "scheme"), [(LAPTOP, "light"), (LAPTOP, "dark"), (PHONE, "dark")])
def test_axe_finds_nothing_serious(visits: Any, size: tuple[int, int], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    visit = visits(size, color_scheme=scheme)
    visit.page.locator(f"{WHITE_BOX} td button").first.click()  # the card is looked at too
    visit.page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    visit.settle()
    found = axe.Axe().run(visit.page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious]


@pytest.mark.parametrize("size", [PHONE, LAPTOP, WIDE])
def test_nothing_but_a_tables_own_box_scrolls_sideways(visits: Any, size: tuple[int, int]) -> None:
    visit = visits(size)
    visit.settle()
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    box = page.locator(f"{WHITE_BOX} .scroll")
    name = box.locator("th[scope=row]").first
    before = name.bounding_box()["x"]
    box.evaluate("(node) => { node.scrollLeft = 150; }")
    assert name.bounding_box()["x"] == pytest.approx(before, abs=1), "the first column stays"
    if size == PHONE:
        assert box.evaluate("(node) => node.scrollLeft") > 0
    else:
        row = box.locator("tbody tr").nth(4)
        row.evaluate("(node) => node.scrollIntoView({block: 'start', behavior: 'instant'})")
        bar = page.locator(".bar").bounding_box()
        head = box.locator("thead").bounding_box()
        assert head["y"] == pytest.approx(bar["y"] + bar["height"], abs=2), "heads stay below the bar"


def test_without_scripts_everything_can_still_be_read(visits: Any) -> None:
    page = visits(java_script_enabled=False).page
    assert not page.locator(".bar").is_visible()
    assert page.locator(f"{WHITE_BOX} tbody tr", has_text="RSLAD").first.is_visible()
    assert "Mean ± half-width" in page.locator(f"{WHITE_BOX} .about").inner_text()
    assert page.locator("figure img.day").first.is_visible()
    assert all(image.get_attribute("alt") for image in page.locator("figure img").all())


def test_a_figure_tells_its_points_and_lets_methods_be_taken_away(opened: Visit) -> None:
    page, card = opened.page, opened.page.locator("#card")
    figure = page.locator("figure.drawn", has_text="Teacher against student, cifar10, rn18")
    figure.scroll_into_view_if_needed()
    group = figure.locator("g.series[data-name=RSLAD]")
    mark = group.locator(".mark").last.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert card.locator(".of").first.inner_text().startswith("RSLAD")
    heads = page.locator(f"{WHITE_BOX} thead th").all_inner_texts()
    assert any(head == "Teacher strong" for head in heads)
    cells = page.locator(f"{WHITE_BOX} tbody tr", has_text="RSLAD").first.locator("td").all_inner_texts()
    assert card.locator(".value").inner_text() in " ".join(cells)
    assert "taught by strong" in card.inner_text()
    assert "near" in str(group.get_attribute("class")), "the method stands out"
    page.mouse.move(0, 0)
    assert not card.is_visible()
    button = figure.get_by_role("button", name="RSLAD")
    button.click()
    assert (group.count(), button.get_attribute("aria-pressed")) == (0, "false")
    button.click()
    assert (group.count(), button.get_attribute("aria-pressed")) == (1, "true")
    panel = figure.locator(".panel")
    panel.focus()
    page.keyboard.press("ArrowRight")
    first = card.inner_text()
    page.keyboard.press("ArrowDown")
    assert card.inner_text() != first
    assert "taught by" in page.locator("#said").inner_text()
    page.keyboard.press("Escape")
    assert not card.is_visible()


def test_the_overview_names_the_most_robust_method_of_every_student(opened: Visit) -> None:
    found = opened.page.locator(".finding").all_inner_texts()
    assert len(found) == 3
    best = max((float(re.split("[ †]", text)[0]), text) for text in opened.column("AA") if text[0].isdigit())
    assert any(f"{best[0]:.2f} %" in text and "taught by strong" in text for text in found)
    assert any("One seed" in text for text in found if text.startswith("digits"))


def test_a_picture_keeps_its_numbers() -> None:
    """Coordinates are shortened, what is written is not."""

    def draw(figure: Figure) -> None:
        figure.text(0.123456789, 0.5, "0.123456 < 1 & 'x'")

    picture = Plot("a", "A", "a", "a", draw, (2, 1)).render("svg").decode()
    assert "0.123456 &lt; 1 &amp; 'x'" in picture
    assert not re.search(r"\.\d\d\d", re.sub(r">[^<]*<", "><", picture))
