"""Scores where not everything is boxed, beside LVIS's rule written down image by image.

Of an image, detections of a class that is neither in its `neg_category_ids` nor has a box there are
passed over; and so are those of its `not_exhaustive_category_ids` that match nothing.
"""

import json

import numpy as np
import pytest

from jaxdet.evaluation import scores
from jaxdet.evaluation.compare import compare
from jaxdet.report.evaluation import evaluation_page
from tests.tfds_vinbig.test_coco import write
from tfds_vinbig import coco

CATEGORIES = {3: "Mass", 8: "Effusion", 9: "Nodule"}
IMAGES, NORMAL = 24, 10  # the id of "No finding", which COCO's file does not have
RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def made_up(seed):
    """Films with up to two boxes of a class, as lists of dictionaries; and detections."""
    rng = np.random.default_rng(seed)
    images, boxes, found = [], [], []
    for image in range(IMAGES):
        present = {c for c in CATEGORIES if rng.random() < 0.3}
        entry = {"id": image, "file_name": f"{image}.png", "height": 400, "width": 400}
        if rng.random() < 0.8:
            entry["neg_category_ids"] = [c for c in CATEGORIES if c not in present
                                         and rng.random() < 0.6]  # fmt: skip
        if rng.random() < 0.5:
            others = set(CATEGORIES) - set(entry.get("neg_category_ids", ()))
            entry["not_exhaustive_category_ids"] = [c for c in others if rng.random() < 0.4]
        images.append(entry)
        for category in CATEGORIES:
            drawn = []
            for _ in range(rng.integers(1, 3) if category in present else 0):
                drawn.append([*rng.uniform(0, 250, 2), *rng.uniform(40, 140, 2)])
                boxes.append({"image_id": image, "category_id": category, "bbox": drawn[-1],
                              "id": len(boxes) + 1, "area": 1.0})  # fmt: skip
            near = [np.array(box) + rng.normal(0, 12, 4) for box in drawn for _ in range(2)]
            far = [[*rng.uniform(0, 250, 2), *rng.uniform(40, 140, 2)] for _ in range(2)]
            for box in [*near, *far]:
                if rng.random() < 0.6:
                    found.append({"image_id": image, "category_id": category,
                                  "bbox": [float(x) for x in box],
                                  "score": float(rng.random())})  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    return {"images": images, "annotations": boxes, "categories": categories}, found


def case_of(tmp_path, truth, found):
    annotations = coco.read_annotations(write(tmp_path / "truth.json", truth))
    ids, table = coco.read_detections(write(tmp_path / "found.json", found), annotations)
    return scores.of_files(
        annotations.ids, annotations.image, annotations.labels, annotations.readers,
        annotations.boxes, annotations.class_names, ids, table, "raw",
        exhaustive=annotations.exhaustive,
    )  # fmt: skip


def overlap(a, b):
    """IoU of two boxes (x, y, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def judge(truth, found, threshold, as_coco):
    """Of each category, (score, hit) of every detection that counts, and its number of boxes.

    A detection's box is the best that is free (COCO), or the best, if that is free (PASCAL VOC).
    """
    result, counted = {c: [[], 0] for c in CATEGORIES}, []
    for entry in truth["images"]:
        mine = [box for box in truth["annotations"] if box["image_id"] == entry["id"]]
        for category in CATEGORIES:
            boxes = [box["bbox"] for box in mine if box["category_id"] == category]
            result[category][1] += len(boxes)
            known = "neg_category_ids" not in entry or category in entry["neg_category_ids"]
            if not known and not boxes:
                continue
            not_all = category in entry.get("not_exhaustive_category_ids", ())
            free = set(range(len(boxes)))
            here = [
                x for x in found if (x["image_id"], x["category_id"]) == (entry["id"], category)
            ]
            for detection in sorted(here, key=lambda x: -x["score"]):
                overlaps = [overlap(detection["bbox"], box) for box in boxes]
                among = free if as_coco else range(len(boxes))
                best = max(among, key=lambda i: overlaps[i], default=None)
                enough = best is not None and (
                    overlaps[best] >= threshold if as_coco else overlaps[best] > threshold
                )
                hit = enough and best in free
                free -= {best} if hit else set()
                if hit or not not_all:
                    result[category][0].append((detection["score"], hit))
                    counted.append((entry["id"], category, detection["score"]))
    return result, counted


def area(judged, count):
    """Average precision, point by point."""
    judged, points = sorted(judged, reverse=True), []
    for n, (_, hit) in enumerate(judged, 1):
        if hit:
            points.append(sum(h for _, h in judged[:n]) / n)
    return sum(max(points[i:]) for i in range(len(points))) / count


def recalls(judged, count, weights, images):
    """FROC: the best recall of all score thresholds with so many false positives an image."""
    result = []
    for rate in RATES:
        best = 0
        for threshold in [score for score, _ in judged]:
            kept = [(hit, w) for (score, hit), w in zip(judged, weights, strict=True)
                    if score >= threshold]  # fmt: skip
            if sum(w for hit, w in kept if not hit) <= rate * images + 1e-9:
                best = max(best, sum(hit for hit, _ in kept) / count)
        result.append(best)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_lvis_rule(tmp_path, seed):
    truth, found = made_up(seed)
    case = case_of(tmp_path, truth, found)
    result = case.summarize()
    judged, counted = judge(truth, found, 0.4, as_coco=False)
    for category, (rows, count) in judged.items():
        assert result["AP"][CATEGORIES[category]] == pytest.approx(area(rows, count))
    at_each = [judge(truth, found, t, as_coco=True)[0] for t in np.linspace(0.5, 0.95, 10)]
    means = [area(*of[category]) for of in at_each for category in CATEGORIES]
    assert result["mAP@0.5:0.95"] == pytest.approx(np.mean(means))

    # In how many images a false positive of each class counts; rates are per such image.
    images = {c: 0 for c in CATEGORIES}
    for entry in truth["images"]:
        of_image = {b["category_id"] for b in truth["annotations"] if b["image_id"] == entry["id"]}
        for c in CATEGORIES:
            known = c in entry.get("neg_category_ids", [c]) or c in of_image
            images[c] += known and c not in entry.get("not_exhaustive_category_ids", ())
    assert result["images_judged"] == {CATEGORIES[c]: n for c, n in images.items()}
    for c, (rows, count) in judged.items():
        mine = recalls(rows, count, np.ones(len(rows)), images[c])
        assert result["FROC"]["recall_by_class"][CATEGORIES[c]] == pytest.approx(mine)
    together = [row for rows, _ in judged.values() for row in rows]
    weights = [IMAGES / images[c] for c, (rows, _) in judged.items() for _ in rows]
    pooled = recalls(together, len(truth["annotations"]), weights, IMAGES)
    assert result["FROC"]["recall"] == pytest.approx(pooled)

    # What TIDE, calibration and the films are shown of.
    kept = case.judged(case.detections)
    findings = kept.labels < 3
    ids = list(CATEGORIES)
    shown = {(int(i), ids[k], s) for i, k, s in zip(*(x[findings] for x in (
        kept.image, kept.labels, kept.scores)), strict=True)}  # fmt: skip
    assert shown == set(counted)


@pytest.mark.parametrize("seed", range(4))
def test_an_image_that_may_have_a_finding_is_neither_normal_nor_not(tmp_path, seed):
    truth, found = made_up(seed)
    case = case_of(tmp_path, truth, found)
    abnormal = {box["image_id"] for box in truth["annotations"]}
    normal = [
        entry["id"]
        for entry in truth["images"]
        if entry["id"] not in abnormal
        and set(entry.get("neg_category_ids", CATEGORIES)) == set(CATEGORIES)
        and not entry.get("not_exhaustive_category_ids")
    ]
    assert normal and len(normal) + len(abnormal) < IMAGES
    best = {i: max([x["score"] for x in found if x["image_id"] == i], default=0)
            for i in range(IMAGES)}  # fmt: skip
    wins = [(best[a] > best[n]) + (best[a] == best[n]) / 2 for a in abnormal for n in normal]
    result = case.summarize()
    assert result["AUC"] == pytest.approx(np.mean(wins))
    # Average precision of "No finding": rows of the other images are passed over.
    rows = sorted([(1 - best[i], i in normal) for i in [*abnormal, *normal]], reverse=True)
    assert result["AP"]["No finding"] == pytest.approx(area(rows, len(normal)))
    # wAFROC: lesions found against the best false positive of normal images.
    lesions = {i: [] for i in abnormal}
    judged = case.matched()
    hits = dict(zip(judged.target[judged.is_true()], judged.detections.scores[judged.is_true()],
                    strict=True))  # fmt: skip
    for row, (image, label) in enumerate(zip(case.truth.image, case.truth.labels, strict=True)):
        if label < 3:
            lesions[int(image)].append(hits.get(row, -1))
    negative = [best[n] or -1 for n in normal]
    share = [np.mean([np.mean([(x > n) + (x == n) / 2 for n in negative]) for x in scores_])
             for scores_ in lesions.values()]  # fmt: skip
    assert result["wAFROC"] == pytest.approx(np.mean(share))


def test_without_lists_all_is_as_it_was(tmp_path):
    """And lists that leave nothing open say no more than none."""
    truth, found = made_up(0)
    for entry in truth["images"]:
        entry.pop("neg_category_ids", None), entry.pop("not_exhaustive_category_ids", None)
    plain = case_of(tmp_path, truth, found)
    for entry in truth["images"]:
        of_image = {b["category_id"] for b in truth["annotations"] if b["image_id"] == entry["id"]}
        entry["neg_category_ids"] = sorted(set(CATEGORIES) - of_image)
    whole = case_of(tmp_path, truth, found)
    assert plain.exhaustive is whole.exhaustive is None
    result = plain.summarize()
    assert json.dumps(whole.summarize()) == json.dumps(result) and "images_judged" not in result
    # The same numbers when it is asked everywhere, and everything is.
    asked = plain._replace(exhaustive=np.ones((IMAGES, 3), bool)).summarize()
    assert asked.pop("images_judged") == dict.fromkeys(CATEGORIES.values(), IMAGES)
    assert asked == result


def test_the_report_says_how_many_and_so_does_the_comparison(tmp_path):
    truth, found = made_up(1)
    case = case_of(tmp_path, truth, found)
    result = case.summarize()
    result["against"] = compare(case, case.detections, "itself", bootstrap_samples=9)
    assert result["against"]["difference"]["mAP@0.4"] == 0
    unknown = int((~case.exhaustive).sum())
    page = evaluation_page(case, result, title="x", other=case.detections)
    assert f"in {unknown} pairs of image and class there may be more than is boxed" in page
    assert f"{unknown} pairs of image and class" in scores.format_table(result, case.truth)
    whole = case._replace(exhaustive=None)
    page = evaluation_page(whole, whole.summarize(), title="x")
    assert "pairs of image and class" not in page
