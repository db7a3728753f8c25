"""The pages as HTML: what stands in them. How they behave in a browser is in test_browser.py."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxdet.evaluation import compare, curves
from jaxdet.ops.boxes import BoxTable
from jaxdet.report import films, page, plots
from jaxdet.report.evaluation import evaluation_page
from tests import made_up


@pytest.fixture(scope="module")
def made():
    """A small evaluation with the scores that a page is of, and the page."""
    made = made_up.evaluation(24, 64)
    made.scores = made.case.summarize(bootstrap_samples=50)
    made.scores |= {"checkpoint": 1300, "split": "fold 0 of 5"}
    made.scores["against"] = compare.compare(
        made.case, made.other, "runs/other", bootstrap_samples=50
    )
    made.page = evaluation_page(
        made.case, made.scores, title="runs/x", dataset=made.dataset, other=made.other,
        history=made_up.history(), about={"device": "a machine"}, config={"seed": 7},
    )  # fmt: skip
    return made


class Reader(HTMLParser):
    """Sections by id, the text of all cells, and whatever refers to somewhere else."""

    def __init__(self):
        super().__init__()
        self.sections, self.cells, self.links, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag in ("td", "th"):
            self.cells.append("")
        for name in ("src", "href", "xlink:href", "action"):
            if attributes.get(name):
                self.links.append(attributes[name])
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.cells and set(self.open) & {"td", "th"}:
            self.cells[-1] += data


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def galleries(html):
    return [json.loads(text) for text in
            re.findall(r'<script type="application/json">(.*?)</script>', html)]  # fmt: skip


def test_every_section_is_there_and_linked(made):
    found = read(made.page)
    assert found.sections == [
        "against", "classes", "curves", "froc", "normal", "calibration", "errors", "films",
        "training", "run",
    ]  # fmt: skip
    assert [link[1:] for link in found.links if link.startswith("#")][:10] == found.sections


def test_a_page_needs_nothing_but_itself(made):
    for link in read(made.page).links:
        assert link.startswith(("#", "data:")), link
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", made.page)


def test_scores_of_the_page_are_those_of_the_json(made):
    cells = read(made.page).cells
    start = cells.index("Class")
    for name, ap in made.scores["AP"].items():
        _, _, _, shown, interval = cells[cells.index(name, start) :][:5]
        assert shown == page.number(ap)
        assert interval == page.interval(made.scores["95% interval"]["AP"][name])
    for name in ("mAP@0.4", "mAP14@0.4", "mAP@0.5", "mAP@0.75", "mAP@0.5:0.95", "wAFROC", "AUC"):
        assert f"<b>{page.number(made.scores[name])}</b>" in made.page
    low, high = made.scores["against"]["95% interval"]["mAP@0.4"]
    assert page.interval([low, high], signed=True) in cells
    assert (
        "a machine" in made.page and "checkpoint 1300" in made.page and "fold 0 of 5" in made.page
    )


def test_without_films_truth_or_intervals_there_is_still_a_page(made):
    """As --mode=score has it; and where nothing was annotated, or nothing found."""
    case = made.case._replace(class_names=[*made.case.class_names[:-1], "<i>&\"' $x_1$"])
    html = evaluation_page(case, case.summarize(), title="<script>alert(1)</script>")
    assert read(html).sections == [
        "classes", "curves", "froc", "normal", "calibration", "errors", "run"
    ]  # fmt: skip
    assert "alert(1)" in html and "<script>alert" not in html
    assert "&lt;i&gt;&amp;" in html and "<i>" not in html

    nothing = BoxTable(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    blind = made.case._replace(detections=nothing)
    assert "errors" in read(evaluation_page(blind, blind.summarize(), title="x")).sections
    normal = made.case.truth.labels == 14
    healthy = made.case._replace(truth=BoxTable(*(column[normal] for column in made.case.truth)))
    html = evaluation_page(healthy, healthy.summarize(), title="x", dataset=made.dataset)
    assert "errors" not in read(html).sections and "films" in read(html).sections
    neither = made.case._replace(truth=nothing, detections=nothing)
    html = evaluation_page(neither, neither.summarize(), title="x", dataset=made.dataset)
    assert read(html).sections == ["classes", "run"]


def test_text_in_a_script_cannot_end_it():
    data = {"a": "</script><script>alert(1)</script>", "b": "<!--", "c": "ü & 1 < 2"}
    text = str(page.for_script(data))
    assert "<" not in text and json.loads(text) == data


def test_numbers_for_people():
    assert page.number(None) == page.number(float("nan")) == "-"
    assert page.number(0.12345) == "0.123" and page.number(-0.5, 1, signed=True) == "\u22120.5"
    assert page.number(0.5, 1, signed=True) == "+0.5"
    assert page.interval([0.1, 0.25], 2) == "0.10 to 0.25" and page.interval(None) == ""


def test_a_chart_follows_the_colours_of_the_page_and_has_ids_of_its_own():
    one = plots.curve("first", np.array([0, 1.0]), np.array([0, 1.0]), ("a$b$", "c"))
    two = plots.curve("second", np.array([0, 1.0]), np.array([0, 1.0]), ("a", "c"))
    assert one == plots.curve("first", np.array([0, 1.0]), np.array([0, 1.0]), ("a$b$", "c"))
    assert "var(--first)" in one and "#0a0b" not in one and "DejaVu" not in one
    assert "a$b$" in one and 'aria-label="first"' in one
    ids = [set(re.findall(r'id="([^"]*clip[^"]*|p[0-9a-f]{8,})"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]


# Films.


def test_boxes_of_films_are_the_tables(made):
    """Each film has the readers' rows, the truth and the detections of its image, and no other."""
    (data,) = galleries(made.page)
    case, rows = made.case, made.dataset.annotations
    ids = [film["id"] for film in data["films"]]
    assert len(set(ids)) == len(ids)
    judged = films.judge(case.detections, case.truth, 14)[1]
    for film in data["films"]:
        i = case.ids.index(film["id"])
        assert (film["height"], film["width"]) == tuple(made.dataset.sizes[i])
        for layer, image, labels, boxes in (
            ("readers", rows.image, rows.labels, rows.boxes),
            ("truth", case.truth.image, case.truth.labels, case.truth.boxes),
            ("found", case.detections.image, case.detections.labels, case.detections.boxes),
        ):
            mine = (image == i) & (labels < 14)
            got = np.array([box[:5] for box in film["boxes"][layer]]).reshape(-1, 5)
            np.testing.assert_array_equal(got[:, 0], labels[mine])
            np.testing.assert_allclose(got[:, 1:], boxes[mine], atol=0.051)
        hits = [box[5] == "hit" for box in film["boxes"]["found"]]
        found = case.detections.labels < 14
        assert hits == judged[case.detections.image[found] == i].tolist()
        # The score of the detection that hits it is what a truth is found from.
        scores = sorted(box[6] for box in film["boxes"]["truth"] if box[6])
        assert scores == sorted(box[6] for box in film["boxes"]["found"] if box[5] == "hit")


def test_a_film_is_the_picture_at_its_stored_size(made):
    film = films.film(made.dataset, 3)
    picture = Image.open(io.BytesIO(base64.b64decode(film["src"].partition(",")[2])))
    assert picture.size == (64, 64)
    original = made.dataset.decode(3, 64).astype(int)
    assert np.abs(np.asarray(picture, int) - original).mean() < 6
    large = np.zeros((600, 600), np.uint8)
    picture = Image.open(io.BytesIO(base64.b64decode(films.jpeg(large).partition(",")[2])))
    assert picture.size == (512, 512)


def test_films_are_chosen_by_rank_and_by_class():
    """Three images are bad in class 0, one a little in class 1, and no other is bad at all."""
    misses = np.zeros((8, 2))
    misses[[5, 2, 7], 0] = 3, 2, 1
    misses[4, 1] = 0.1
    # Two by rank, then of the class that was not seen, in the order of the rank.
    assert films.choose(misses, 3).tolist() == [5, 2, 4]
    assert films.choose(misses, 4).tolist() == films.choose(misses, 9).tolist() == [5, 2, 7, 4]
    assert films.choose(np.zeros((8, 2)), 3).tolist() == []


def test_the_gallery_is_capped_and_says_what_is_left_out(made):
    small = films.gallery(made.case, made.dataset, 0.3, limit=6)
    for group in (films.MISSES, films.ALARMS, films.HITS):
        ranks = [film["ranks"][group] for film in small["films"] if group in film["ranks"]]
        assert sorted(ranks) == [0, 1]
    assert small["left_out"] == 24 - len(small["films"])
    (data,) = galleries(made.page)
    assert f"{len(data['films'])} of 24 films" in made.page
    assert f"{data['left_out']} others are left out" in made.page


def test_the_worst_miss_alarm_and_hit_come_first():
    """Image 0 is missed, 1 has an alarm, 2 is found, 3 is normal and silent."""
    dataset = made_up.phantom_dataset(4, 32)
    box, other = [100, 100, 600, 600], [1200, 1200, 1500, 1500]
    truth = BoxTable(
        np.array([0, 1, 2]), np.array([3, 3, 3]), np.array([box] * 3, float), np.ones(3)
    )
    found = BoxTable(
        np.array([1, 1, 2]), np.array([3, 5, 3]), np.array([box, other, box], float),
        np.array([0.8, 0.9, 0.7]),
    )  # fmt: skip
    case = made_up.scores.Case(
        [str(i) for i in dataset.ids], dataset.class_names, truth, "raw", found
    )
    data = films.gallery(case, dataset, 0.5)
    ranks = {case.ids.index(film["id"]): film["ranks"] for film in data["films"]}
    assert ranks[0][films.MISSES] == 0
    assert ranks[1] == {films.MISSES: 2, films.ALARMS: 0, films.HITS: 1}
    assert ranks[2] == {films.MISSES: 1, films.HITS: 0} and 3 not in ranks


def test_readers_keep_their_colours(made):
    layers, legend = films.reader_layers(made.dataset, np.arange(len(made.dataset)))
    style = {reader["name"]: reader["style"] for reader in legend}
    assert len(style) == len(legend) and set(style) == set(made.dataset.annotations.readers)
    for layer in layers:
        for box in layer:
            assert box[5] == style[box[7]]
    # Those who have read most have colours of their own.
    assert len({reader["style"] for reader in legend[:8]}) == min(8, len(legend))


def test_the_slider_begins_where_f1_is_best(made):
    (data,) = galleries(made.page)
    best = curves.best_f1_score(made.case.detections, made.case.truth, 0.4, 14)
    assert data["score"] == round(best, 2)


def test_a_page_of_many_large_films_stays_small(made):
    """Sixty films of 1024 pixels of noise, which no JPEG makes small, with 100 boxes each."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (1024, 1024), np.uint8)).save(file, "png")
    dataset = replace(made.dataset, source=[file.getvalue()] * len(made.dataset))
    one = len(films.film(dataset, 0)["src"])
    assert one * films.FILMS < 16e6
