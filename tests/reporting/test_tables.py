import math

import pytest

from qskd.reporting.tables import duration, number, percent, share, signed_percent, text_table


@pytest.mark.parametrize(
    ("value", "shown", "signed"),
    [
        (0.4567, "45.7", "+45.7"),
        (-0.021, "-2.1", "-2.1"),
        (0.0, "0.0", "0.0"),
        (-0.0001, "-0.0", "0.0"),
        (None, "-", "-"),
        (math.nan, "-", "-"),
    ],
)
def test_metrics_are_percentages_and_differences_carry_their_sign(value, shown, signed):
    assert (percent(value), signed_percent(value)) == (shown, signed)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (3.58, "3.6 s"), (23.4, "23 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_durations_have_the_unit_people_would_use(seconds, shown):
    assert duration(seconds) == shown


def test_numbers_that_are_unknown_are_dashes():
    assert [number(1234.567, 2), number(None), number(math.nan)] == ["1,234.57", "-", "-"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.094, "9%"), (1.5, "150%"), (-0.001, "0%"), (-0.2, "-20%"), (None, "-"), (math.nan, "-")]
)
def test_parts_of_a_whole_are_whole_percentages(value, shown):
    assert share(value) == shown


def test_text_columns_are_aligned():
    assert text_table(["run", "AP"], [["a", "1.0"], ["long name", "10.0"]]).splitlines() == [
        "run          AP",
        "---------  ----",
        "a           1.0",
        "long name  10.0",
    ]
