"""Names and ids in COCO's JSON: whichever form they are written in, one thing has one name."""

import copy
import unicodedata

import pytest

from tests.tfds_vinbig.test_coco import INSTANCES, changed, message, write
from tfds_vinbig import coco, results
from tfds_vinbig.records import class_name_of

ROW = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.9}


def annotations(tmp_path, data):
    return coco.read_annotations(write(tmp_path / "x.json", data))


# Categories


def meta(tmp_path, *categories, used=()):
    """A file with these categories (id, name, supercategory), some of them with an annotation."""
    data = {
        "images": INSTANCES["images"],
        "categories": [
            dict(zip(("id", "name", "supercategory"), row, strict=True)) for row in categories
        ],
        "annotations": [{"image_id": 7, "category_id": i, "bbox": [1, 2, 3, 4]} for i in used],
    }
    return write(tmp_path / "x.json", data)


def test_a_class_that_is_its_own_heading_is_found_by_its_name(tmp_path):
    path = meta(tmp_path, (4, "Rib", "Rib"), (7, "Heart", "Heart"), used=[4])
    assert coco.read_annotations(path).class_names == ("Rib",)  # nothing says that 7 is a class
    assert coco.class_ids_by_name(path, ["Heart", "Rib"]) == [7, 4, 8]  # 8 is free


@pytest.mark.parametrize("used", [(), (1,)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("parents", [("none", "Rib"), ("none", "none"), ("Rib", "Rib")])
def test_the_first_category_of_roboflow_takes_no_class_its_id(tmp_path, used, first, parents):
    rows = [(0, "Rib", parents[0]), (1, "Rib", parents[1])]
    path = meta(tmp_path, *(rows if first else rows[::-1]), used=used)
    assert coco.class_ids_by_name(path, ["Rib"]) == [1, 2]
    assert coco.read_annotations(path).class_ids[:1] == (1,)


def test_a_class_with_annotations_is_meant_before_any_without(tmp_path):
    path = meta(tmp_path, (0, "Rib", "none"), (1, "Rib", "thorax"), used=[0])
    assert coco.class_ids_by_name(path, ["Rib"])[0] == 0


COMPOSED = "Tràn dịch màng phổi"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize("here, there", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_names_of_classes_are_compared_composed(tmp_path, here, there):
    assert here != there and class_name_of(here) == class_name_of(there)
    data = changed("categories[1]", name=here)
    read = annotations(tmp_path, data)
    assert read.class_names[0] == COMPOSED
    assert coco.class_ids_by_name(tmp_path / "x.json", [there])[0] == 2
    row = {**ROW, "category_id": 9, "category_name": there}
    _, table = coco.read_detections(write(tmp_path / "d.json", [row]), read)
    assert table.labels[0] == 0
    data["categories"][0]["name"] = there  # one name twice
    assert "is there twice" in message(annotations, tmp_path, data)


# Ids


def test_two_texts_of_one_number_are_two_images(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["images"][0]["id"], data["images"][1]["id"], data["images"][2]["id"] = "1", "01", "2"
    for entry, image_id in zip(data["annotations"], ("01", "1", 2), strict=True):
        entry["image_id"] = image_id
    read = annotations(tmp_path, data)
    found = list(zip(read.image.tolist(), read.labels.tolist(), strict=True))
    assert found == [(1, 2), (0, 0), (2, 1)]  # 2 can be "2" alone
    for row, image in (("1", 0), ("01", 1), (2, 2)):
        path = write(tmp_path / "d.json", [{**ROW, "image_id": row}])
        _, table = coco.read_detections(path, read)
        assert table.image[0] == image
    path = write(tmp_path / "d.json", [{**ROW, "image_id": 1}])
    said = message(coco.read_detections, path, read)
    assert said.endswith("[0]: image_id 1 may be '1' or '01': write it as the image has it")
    data["annotations"][0]["image_id"] = "001"
    assert "image_id '001' is in no image" in message(annotations, tmp_path, data)


def test_one_strange_id_among_right_ones_is_named(tmp_path):
    """All are numbers in names of files too, so that this may not be taken for the reason."""
    data = copy.deepcopy(INSTANCES)
    for entry, name in zip(data["images"], ("30.png", "7.png", "99.png"), strict=True):
        entry["file_name"] = name  # of the images 30, 7, 12
    read = annotations(tmp_path, data)
    rows = [{**ROW, "bbox": entry["bbox"]} for entry in data["annotations"]]
    rows[1]["image_id"] = 99
    said = message(coco.read_detections, write(tmp_path / "d.json", rows), read)
    assert said.endswith("[1]: image_id 99 is not among the annotated images")


def test_a_chance_hit_elsewhere_is_no_reason_to_refuse(tmp_path):
    data = copy.deepcopy(INSTANCES)
    names = {30: "12.png", 7: "30.png", 12: "7.png"}
    for entry in data["images"]:
        entry["file_name"] = names[entry["id"]]
    read = annotations(tmp_path, data)
    rows = [{**ROW, "bbox": [60, 50, 2, 2]} for _ in range(9)]
    rows.append({**ROW, "bbox": [0, 0, 90, 60]})  # as one is on image 12
    _, table = coco.read_detections(write(tmp_path / "d.json", rows), read)
    assert (table.image[:10] == 1).all()


@pytest.mark.parametrize("where", ["images", "categories", "annotations"])
def test_whole_numbers_may_be_text(tmp_path, where):
    data = copy.deepcopy(INSTANCES)
    for entry in data[where]:
        for field in {"height", "width", "category_id"} | (
            {"id"} if where == "categories" else set()
        ):
            if field in entry:
                entry[field] = f"{entry[field]:.0f}"
    read, usual = annotations(tmp_path, data), annotations(tmp_path, INSTANCES)
    assert read.class_ids == usual.class_ids and read.labels.tolist() == usual.labels.tolist()
    write(tmp_path / "x.json", data)
    assert coco.read_sizes(tmp_path / "x.json")["c"] == (60, 90)
    row = {**ROW, "category_id": "5"}
    _, table = coco.read_detections(write(tmp_path / "d.json", [row]), read)
    assert table.labels[0] == 1


@pytest.mark.parametrize("text", ["", "640px", "0640", "6e2", "-5", "٦٤٠", "0", "640.0"])
def test_other_text_is_no_size(tmp_path, text):
    data = changed("images[0]", width=text)
    assert f"and width {text!r} are no size in pixels" in message(annotations, tmp_path, data)


# Several files of detections


def test_files_with_other_ids_for_one_class_agree_by_its_name(tmp_path):
    one = [{**ROW, "category_name": "Rib"}, {**ROW, "category_id": 3, "category_name": "Heart"}]
    two = [{**ROW, "category_name": " Heart"}, {**ROW, "category_id": 8, "category_name": "Mass"}]
    paths = [write(tmp_path / f"{i}.json", rows) for i, rows in enumerate((one, two))]
    read = results.read_all(paths, known=[2, 3])
    assert read.class_ids == (2, 3, 8, results.NONE)
    assert read.class_names == ["Rib", "Heart", "Mass", None]
    assert [sorted(set(table.labels.tolist()) - {3}) for table in read.tables] == [[0, 1], [1, 2]]
    (note,) = read.notes
    assert "1.json: 1 detections have a category_id that is not that of their category_name" in note
    text = results.to_text(".json", read.ids, read.tables[1], read.class_ids, read.image_ids,
                           read.class_names)  # fmt: skip
    assert '"category_id": 3' in text and '"category_name": "Heart"' in text


def test_an_id_of_two_names_is_refused_and_one_without_a_name_goes_by_id(tmp_path):
    one = write(tmp_path / "1.json", [{**ROW, "category_name": "Rib"}])
    two = write(tmp_path / "2.json", [{**ROW, "category_name": "Heart"}])
    said = message(results.read_all, [one, two])
    assert "2.json: category_id 2 is 'Heart' here, and 'Rib' in" in said and "--meta" in said
    write(two, [ROW, {**ROW, "category_id": 4}])
    read = results.read_all([one, two])
    assert read.class_ids == (2, 4, results.NONE) and read.class_names == ["Rib", None, None]
    assert "category_name" not in results.to_text(
        ".json", read.ids, read.tables[1], read.class_ids, read.image_ids, read.class_names
    )
    assert "has the class 4, which" in message(results.read_all, [one, two], [2])


@pytest.mark.parametrize("first, second", [(1, "1"), ("1", 1)])
def test_an_image_is_called_as_the_first_file_has_it(tmp_path, first, second):
    paths = [
        write(tmp_path / f"{i}.json", [{**ROW, "image_id": image_id}])
        for i, image_id in enumerate((first, second))
    ]
    read = results.read_all(paths)
    assert read.image_ids == {"1": first} and [table.image[0] for table in read.tables] == [0, 0]
    (note,) = read.notes
    assert f"1.json: 1 image_ids, {second!r} first, are numbers where another" in note
    write(paths[1], [{**ROW, "image_id": "01"}, {**ROW, "image_id": first}])
    read = results.read_all(paths)
    assert read.image_ids == {"1": first, "01": "01"} and read.notes == []


@pytest.mark.parametrize("first, second", [(1, "01"), ("01", 1)])
def test_an_image_by_its_number_in_several_files(tmp_path, first, second):
    """With another image in common: as two, these two would be fused with nothing."""
    paths = [
        write(tmp_path / f"{i}.json", [{**ROW, "image_id": image_id}, ROW])
        for i, image_id in enumerate((first, second))
    ]
    read = results.read_all(paths)
    assert list(read.image_ids.values()) == [first, 7]
    assert [table.image[:2].tolist() for table in read.tables] == [[0, 1], [0, 1]]
    (note,) = read.notes
    assert f"1.json: 1 image_ids, {second!r} first, are numbers where another" in note
    # Two texts are two images, and a number may then be either.
    write(paths[0], [{**ROW, "image_id": "01"}, ROW])
    write(paths[1], [{**ROW, "image_id": "1"}, ROW])
    read = results.read_all(paths)
    assert list(read.image_ids.values()) == ["01", 7, "1"] and read.notes == []
    paths.append(write(tmp_path / "2.json", [{**ROW, "image_id": 1}, ROW]))
    said = message(results.read_all, paths)
    assert said == f"{paths[2]}: image_id 1 may be '01' or '1': write it as the image has it"


@pytest.mark.parametrize("images, others", [("NFC", "NFD"), ("NFD", "NFC")])
def test_image_ids_are_compared_composed(tmp_path, images, others):
    here, there = (unicodedata.normalize(form, "phổi ảnh") for form in (images, others))
    data = changed("images[1]", id=here)
    for place in (0, 2):
        data["annotations"][place].update(image_id=there, rad_id=("é", "e\u0301")[place // 2])
    read = annotations(tmp_path, data)
    assert read.image.tolist()[:3] == [1, 2, 1] and read.image_ids[1] == here
    assert read.readers[0] == read.readers[2] == "é"
    row = {**ROW, "image_id": there, "bbox": [5, 5, 5, 5]}
    _, table = coco.read_detections(write(tmp_path / "d.json", [row]), read)
    assert table.image[0] == 1
    data["images"][0]["id"] = there
    assert f"images[1]: id {here!r} is there twice" in message(annotations, tmp_path, data)


@pytest.mark.parametrize("first, second", [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_agree_on_an_image_in_whichever_form(tmp_path, first, second):
    """With another image that both have: as two, these two would be fused with nothing."""
    names = [unicodedata.normalize(form, "ảnh") for form in (first, second)]
    paths = [
        write(tmp_path / f"{i}.json", [{**ROW, "image_id": name}, ROW])
        for i, name in enumerate(names)
    ]
    read = results.read_all(paths)
    assert list(read.image_ids.values()) == [names[0], 7] and read.notes == []
    assert [table.image[:2].tolist() for table in read.tables] == [[0, 1], [0, 1]]
