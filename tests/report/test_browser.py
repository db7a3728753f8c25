"""The pages in a real browser. Its pictures are those of the README: see `test_pictures`."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import phantom
from jaxdet.data.batches import make_targets
from jaxdet.evaluation import compare
from jaxdet.ops import anchors
from jaxdet.report.data import data_page
from jaxdet.report.evaluation import evaluation_page
from tests import made_up
from tests.report.test_report import galleries

pytestmark = pytest.mark.slow  # needs Chromium
ROOT = Path(__file__).parents[2]
WIDE, PHONE = {"width": 1200, "height": 1000}, {"width": 360, "height": 780}


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system; .ci/run installs it, so that it must be there."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing = "Chromium is not installed: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made():
    return made_up.evaluation(60, 256)


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    """A report with every section, of two runs."""
    scores = made.case.summarize(bootstrap_samples=100)
    scores |= {"checkpoint": 1300, "split": "fold 0 of 5"}
    scores["against"] = compare.compare(made.case, made.other, "runs/b", bootstrap_samples=100)
    html = evaluation_page(
        made.case, scores, title="runs/a", dataset=made.dataset, other=made.other,
        history=made_up.history(), about={"workdir": "runs/a"}, config={"seed": 0},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html)
    return path


@pytest.fixture(scope="module")
def data(made, tmp_path_factory):
    """A page about the data, one film of which is a negative."""
    config, dataset = phantom.get_config(), made.dataset
    negative = io.BytesIO()
    Image.fromarray(255 - dataset.decode(5, 256)).save(negative, "png")
    dataset.source[5] = negative.getvalue()
    train_set, eval_set = dataset.take(np.arange(48)), dataset.take(np.arange(48, 60))
    targets = make_targets(train_set, config.data.fusion, 128)
    plan = anchors.plan(targets.boxes[targets.mask], targets.labels[targets.mask], 128, 2, 3)
    config.model.levels, config.model.anchor_scales, config.model.aspect_ratios = plan
    path = tmp_path_factory.mktemp("data") / "data.html"
    path.write_text(data_page(config, dataset, train_set, eval_set, "tfds_vinbig/phantom"))
    return path


@pytest.fixture
def visit(browser):
    """A function that opens a page; at the end nothing may have gone wrong or been fetched."""
    pages, trouble = [], []

    def visit(path, viewport=WIDE, scheme="light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("data:", path.as_uri()))
                or trouble.append(f"fetched {request.url[:80]}")
            ),
        )
        page.goto(path.as_uri())
        return page

    yield visit
    for page in pages:
        page.close()
    assert not trouble


def set_score(page, value):
    page.evaluate(
        """value => { const slider = document.querySelector("[name=score]"); slider.value = value;
                      slider.dispatchEvent(new Event("input", {bubbles: true})); }""",
        value,
    )


def count(page, selector):
    return page.locator(f".film:not([hidden]) {selector}").count()


FOUND = ".box:is(.hit, .false):not(.other)"


def films_shown(page, gallery=".gallery"):
    """Cards that are seen, in the order in which they stand on the screen."""
    return page.evaluate(
        """gallery => [...document.querySelector(gallery).querySelectorAll(".film")]
            .filter(card => !card.hidden).map(card => [card.getBoundingClientRect(), card])
            .sort(([a], [b]) => a.top - b.top || a.left - b.left)
            .map(([, card]) => card.querySelector(".id").textContent)""",
        gallery,
    )


def test_the_slider_shows_more_or_fewer_detections(visit, report, made):
    page = visit(report)
    ids = films_shown(page)
    shown = np.isin(made.case.ids, ids)
    scores = made.case.detections.scores[
        (made.case.detections.labels < 14) & shown[made.case.detections.image]
    ]
    truth = made.case.truth
    num_truth = int(((truth.labels < 14) & shown[truth.image]).sum())
    for value in (0, 0.3, 0.6, 1):
        set_score(page, value)
        assert page.locator("output").text_content() == f"{value:.2f}"
        assert count(page, FOUND) == (np.round(scores, 4) >= value).sum()
        assert count(page, ".box:is(.truth, .missed)") == num_truth
    assert count(page, ".box.missed") == num_truth  # nothing is found from a score of 1 on
    captions = page.locator(".film:not([hidden]) figcaption:not(.id)").all_text_contents()
    assert all(", 0 false alarms" in text for text in captions)
    set_score(page, 0)
    assert 0 < count(page, ".box.missed") < num_truth


def test_the_class_filter_leaves_one_class(visit, report, made):
    page = visit(report)
    everything = films_shown(page)
    set_score(page, 0.1)
    label = int(np.bincount(made.case.truth.labels, minlength=15)[:14].argmax())
    page.locator("[name=label]").select_option(str(label))
    truth, rows = made.case.truth, made.dataset.annotations
    there = {*truth.image[truth.labels == label], *rows.image[rows.labels == label]}
    for table in (made.case.detections, made.other):
        there |= {*table.image[(table.labels == label) & (table.scores >= 0.1)]}
    ids = films_shown(page)
    assert ids == [name for name in everything if made.case.ids.index(name) in there]
    assert 0 < len(ids) < len(everything)
    assert page.locator(".said").text_content() == f"{len(ids)} of {len(everything)} films"
    shown = np.isin(made.case.ids, ids)
    of_class = (truth.labels == label) & shown[truth.image]
    assert count(page, ".box:is(.truth, .missed)") == of_class.sum()
    names = page.locator(".film:not([hidden]) svg text").all_text_contents()
    assert names and all(name.startswith(made.case.class_names[label]) for name in names)


def test_each_switch_shows_its_boxes(visit, report):
    page = visit(report)
    set_score(page, 0.2)
    layers = {
        "readers": ".box[class*=reader]", "truth": ".box:is(.truth, .missed)", "found": FOUND,
        "other": ".box.other",
    }  # fmt: skip
    assert page.locator(".readers").is_hidden()
    for name, selector in layers.items():
        switch = page.locator(f"[name=layer][value={name}]")
        switch.set_checked(True)
        assert count(page, selector) > 0
        switch.set_checked(False)
        assert count(page, selector) == 0
    assert count(page, ".box") == 0
    page.locator("[value=readers]").check()
    assert page.locator(".readers").is_visible()
    assert count(page, "svg text") > 0
    page.locator("[name=labels]").uncheck()
    assert count(page, "svg text") == 0 and count(page, ".box") > 0


def test_each_group_has_its_worst_first(visit, report):
    page = visit(report)
    (data,) = galleries(report.read_text())
    assert data["groups"] == ["Worst misses", "False alarms", "Best hits", "Differ most"]
    for group in data["groups"]:
        page.get_by_label(group, exact=True).check(force=True)
        films = [film for film in data["films"] if group in film["ranks"]]
        expected = [film["id"] for film in sorted(films, key=lambda film: film["ranks"][group])]
        assert films_shown(page) == expected and len(films) == 15


def overlaps(page):
    """How often two labels of a film overlap, or one sticks out of it; and how many there are."""
    return page.evaluate(
        """() => {
            let bad = 0, labels = 0;
            for (const svg of document.querySelectorAll(".film:not([hidden]) svg")) {
                const film = svg.getBoundingClientRect();
                const plates = [...svg.querySelectorAll(".plate")].map(p => p.getBoundingClientRect());
                const texts = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
                labels += plates.length;
                plates.forEach((a, i) => {
                    const inside = a.left >= film.left - 0.6 && a.right <= film.right + 0.6
                        && a.top >= film.top - 0.6 && a.bottom <= film.bottom + 0.6;
                    const covered = texts[i].left >= a.left - 1 && texts[i].right <= a.right + 1;
                    if (!inside || !covered) bad += 1;
                    for (const b of plates.slice(i + 1)) {
                        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.1
                            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.1) bad += 1;
                    }
                });
            }
            return [bad, labels];
        }"""  # noqa: E501
    )


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_labels_never_cover_each_other(visit, report, data, viewport):
    page = visit(report, viewport)
    page.locator("[value=readers]").check()
    page.locator("[value=other]").check()
    for value in (0.5, 0):
        set_score(page, value)
        bad, labels = overlaps(page)
        assert bad == 0 and labels > 150
    boxes = count(page, ".box")
    page.locator(".film:not([hidden]) button").first.click()  # more room, drawn anew
    page.wait_for_timeout(200)
    assert count(page, ".box") == boxes and overlaps(page)[0] == 0
    page = visit(data, viewport)
    for switch in page.locator("[name=layer]").all():
        switch.check()
    bad, labels = overlaps(page)
    assert bad == 0 and labels > 150


def test_a_film_grows_by_a_click(visit, report):
    page = visit(report)
    film = page.locator(".film:not([hidden]) button").nth(1)
    before = film.bounding_box()["width"]
    film.click()
    assert film.bounding_box()["width"] > 1.5 * before
    assert film.bounding_box()["height"] < WIDE["height"]
    page.wait_for_timeout(200)
    width = page.locator(".film:not([hidden]) svg").nth(1).bounding_box()["width"]
    assert width == film.bounding_box()["width"]
    film.press("Enter")  # as good as a click
    assert film.bounding_box()["width"] == before


def test_boxes_are_where_they_are(visit, report, made):
    """A box of the truth, measured on the screen, against the table."""
    page = visit(report)
    page.locator("[value=found]").uncheck()
    i = made.case.ids.index(films_shown(page)[0])
    truth = made.case.truth
    mine = (truth.image == i) & (truth.labels < 14)
    got = page.evaluate(
        """() => {
            const cards = [...document.querySelectorAll(".film:not([hidden])")];
            cards.sort((a, b) => a.style.order - b.style.order);
            const film = cards[0].querySelector("img").getBoundingClientRect();
            return [...cards[0].querySelectorAll("svg .box")].map(rect => {
                const box = rect.getBBox();
                return [box.x / film.width, box.y / film.height, (box.x + box.width) / film.width,
                        (box.y + box.height) / film.height];
            });
        }"""
    )
    height, width = made.dataset.sizes[i]
    expected = truth.boxes[mine] / [width, height, width, height]
    np.testing.assert_allclose(got, expected, atol=2e-3)


def contrast(page, selector):
    """Of a text with its page, by WCAG 2."""

    def luminance(color):
        channels = np.array([float(x) for x in color[4:-1].split(",")[:3]]) / 255
        linear = np.where(
            channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    text, paper = page.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)),
                        getComputedStyle(document.body).backgroundColor]
            .map(x => typeof x === "string" ? x : x.fill !== "rgb(0, 0, 0)" ? x.fill : x.color)""",
        selector,
    )
    low, high = sorted([luminance(text), luminance(paper)])
    return (high + 0.05) / (low + 0.05)


def test_both_colour_schemes_can_be_read(visit, report, data):
    papers = []
    for path in (report, data):
        for scheme in ("light", "dark"):
            page = visit(path, scheme=scheme)
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            papers.append(sum(float(x) for x in paper[4:-1].split(",")))
            for selector in ("h1", "p", ".note", "td", "nav a", ".plots svg text"):
                assert contrast(page, selector) > 4.5, (path.name, scheme, selector)
    assert papers[0] > 700 and papers[1] < 100 and papers[2:] == papers[:2]


def test_a_phone_needs_no_scrolling_sideways(visit, report, data):
    for path in (report, data):
        page = visit(path, PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        # Each table is seen as far as its bars, or scrolls by itself.
        wide = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter(element =>
                element.getBoundingClientRect().right > innerWidth + 1
                && !element.closest(".scroll, pre, svg")).length"""
        )
        assert wide == 0
        page.locator(".film:not([hidden]) button").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_names_are_text_and_nothing_else(visit, made, tmp_path):
    """Classes and images that are called as if they were HTML, or mathematics."""
    evil = "<img src=x onerror=alert(1)>$\\frac$</script>"
    names = [evil, *made.case.class_names[1:]]
    case = made.case._replace(class_names=names, ids=[f"{evil}{i}" for i in range(60)])
    dataset = made.dataset
    object.__setattr__(dataset, "ids", np.array(case.ids))
    try:
        html = evaluation_page(case, case.summarize(), title=evil, dataset=dataset)
    finally:
        object.__setattr__(dataset, "ids", np.array(made.case.ids))
    path = tmp_path / "evil.html"
    path.write_text(html)
    page = visit(path)
    assert page.locator("h1").text_content() == evil
    assert page.locator("[name=label] option").nth(1).text_content() == evil
    assert page.locator("img[src=x]").count() == 0


def test_switches_of_the_page_about_the_data(visit, data):
    page = visit(data)
    fed = page.locator("#fed-gallery")
    assert fed.locator(".box.anchor").count() > 100 and fed.locator(".box.fused").count() > 10
    fed.locator("[value=anchors]").uncheck()
    assert fed.locator(".box.anchor").count() == 0 and fed.locator(".box.fused").count() > 10
    samples = page.locator("#samples-gallery")
    drawn = samples.locator(".box").count()
    samples.locator("[value=readers]").uncheck()
    samples.locator("[value=fused]").check()
    assert 0 < samples.locator(".box").count() < drawn
    assert len(films_shown(page, "#suspects-gallery")) == 1  # the negative
    page.locator("#suspects-gallery").get_by_label("Tiny boxes").check(force=True)
    assert len(films_shown(page, "#suspects-gallery")) > 1


def test_pictures(visit, report, data, tmp_path):
    """Those of the README. WRITE_DOCS=1 has them written to docs/."""
    docs = ROOT / "docs"
    folder = docs if os.environ.get("WRITE_DOCS") else tmp_path
    width, height = 900, 880
    for path, name, left, right in (
        (report, "report.png", "body", "#film-gallery"),
        (data, "data.png", "#fed-gallery", "#where"),
    ):
        page = visit(path, {"width": width, "height": height})
        page.evaluate("document.querySelector('#against')?.remove()")
        both = Image.new("RGB", (2 * width + 24, height), "white")
        for x, place in ((0, left), (width + 24, right)):
            page.evaluate(
                "place => scrollTo({top: document.querySelector(place).offsetTop - 16, "
                "behavior: 'instant'})",
                place,
            )
            page.wait_for_timeout(300)
            both.paste(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), (x, 0))
        both.quantize(200, kmeans=2, dither=Image.Dither.NONE).save(folder / name, optimize=True)
        for file in (folder / name, docs / name):
            assert file.stat().st_size < 400_000
            assert Image.open(file).size == both.size
