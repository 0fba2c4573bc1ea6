import pytest

from qskd.errors import LabelMapError
from qskd.labels import LabelMap, match_names, normalise


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person", "person"),
        ("  Person ", "person"),
        ("traffic_light", "traffic light"),
        ("Traffic-Light", "traffic light"),
        ("traffic __ light", "traffic light"),
        ("_hidden_", "hidden"),
        ("Straße", "strasse"),
        ("", ""),
    ],
)
def test_names_are_compared_without_case_and_separators(name, expected):
    assert normalise(name) == expected


def test_a_models_own_classes_are_its_used_rows_in_order():
    own = LabelMap.of_model({2: "cat", 0: "N/A", 1: "dog", 5: "", 4: "Cat"})
    assert own.student_names == own.teacher_names == ("dog", "cat", "Cat")
    assert own.teacher_index == (1, 2, 4)


def test_classes_are_matched_by_name_and_not_by_index():
    coco = {0: "N/A", 1: "person", 2: "bicycle", 10: "traffic light", 11: "N/A"}

    label_map = LabelMap.between(coco, ["Traffic_Light", "drone", "person"])

    assert label_map.teacher_index == (10, -1, 1)
    assert label_map.known == (True, False, True)
    assert label_map.teacher_names == ("traffic light", None, "person")
    assert label_map.unmatched_teacher == ("bicycle",)


def test_a_row_for_nothing_is_never_matched():
    assert match_names({0: "N/A", 1: "", 2: "dog"}, ["n/a", "dog"]) == (-1, 2)


def test_exact_spelling_decides_between_names_that_are_alike():
    assert match_names({0: "Polish", 1: "polish"}, ["polish", "Polish"]) == (1, 0)


@pytest.mark.parametrize(
    ("teacher", "student", "named"),
    [
        ({0: "cell phone", 1: "cell-phone"}, ["cell_phone"], "1: 'cell-phone'"),
        ({3: "dog", 4: "dog"}, ["dog"], "4: 'dog'"),
        ({0: "dog"}, ["dog", "Dog"], "'dog' and 'Dog'"),
    ],
    ids=["two loose candidates", "two equal rows", "two students of one teacher"],
)
def test_names_that_cannot_be_told_apart_are_refused(teacher, student, named):
    with pytest.raises(LabelMapError, match=named):
        LabelMap.between(teacher, student)


def test_alike_names_that_nobody_asks_for_are_no_problem():
    assert LabelMap.between({0: "a b", 1: "a_b", 2: "c"}, ["c"]).teacher_index == (2,)


def test_without_a_common_name_the_error_shows_both_sides_and_what_to_do():
    with pytest.raises(LabelMapError) as error:
        LabelMap.between({0: "motorcycle", 1: "person"}, ["motorbike", "human"])

    lines = str(error.value).splitlines()
    assert lines[1].split() == ["student", "teacher", "closest"]
    assert lines[2].split() == ["motorbike", "motorcycle", "motorcycle"]
    assert lines[3].split() == ["human", "person"]
    assert "id2label" in lines[-1]


def test_a_long_list_of_names_is_cut_in_the_error():
    with pytest.raises(LabelMapError, match=r"and 1170 more lines"):
        LabelMap.between({index: f"t{index:04}" for index in range(1200)}, ["x"])


def test_the_table_names_every_class_and_what_is_left_over():
    table = LabelMap.between({5: "dog", 6: "cat"}, ["Dog", "emu"]).as_table().splitlines()

    assert table[1].split() == ["0", "Dog", "5", "dog"]
    assert table[2].split(maxsplit=3) == ["1", "emu", "-", "(unknown to the teacher)"]
    assert table[3] == "The student does not have: cat."


def test_the_map_is_written_as_plain_values():
    assert LabelMap.between({5: "dog", 6: "cat"}, ["Dog", "emu"]).as_dict() == {
        "classes": [
            {"student_index": 0, "student": "Dog", "teacher_index": 5, "teacher": "dog"},
            {"student_index": 1, "student": "emu", "teacher_index": -1, "teacher": None},
        ],
        "unmatched_teacher": ["cat"],
    }
