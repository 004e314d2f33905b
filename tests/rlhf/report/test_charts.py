"""Charts worked by hand."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.report.charts import (
    FEW,
    HEIGHT,
    MAX_POINTS,
    MAX_TIPS,
    WIDTH,
    Line,
    bar_chart,
    line_chart,
    smoothed,
    thinned,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.13, 0.91, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 100, [0, 25, 50, 75, 100]),
        (-0.8, 0.9, [-1, -0.5, 0, 0.5, 1]),
        (0, 1e-5, [0, 2.5e-6, 5e-6, 7.5e-6, 1e-5]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_steps_are_whole_and_inside():
    assert ticks(1, 7, whole=True) == [2, 4, 6]
    assert ticks(1, 2, whole=True) == [1, 2]
    assert ticks(5, 5, whole=True) == [5]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_any_range_has_some_ticks_around_it(a, b):
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 7
    dust = 1e-8 * (marks[-1] - marks[0])
    assert marks[0] <= low + dust
    assert marks[-1] >= high - dust
    assert len(set(marks)) == len(marks)


def test_smoothing_does_not_lag():
    """A mean over both sides leaves a straight line where it is; a running mean would draw it to the right."""
    straight = [(float(x), 2.0 * x) for x in range(100)]
    assert [y for _, y in smoothed(straight)][1:99] == pytest.approx([y for _, y in straight][1:99])
    assert [y for _, y in smoothed([(0.0, 0.0), (1.0, 3.0), (2.0, 3.0), (3.0, 0.0)])] == [1.5, 2, 2, 1.5]


def test_thinning_keeps_spikes():
    points = [(float(x), 0.0) for x in range(5000)]
    points[1234] = (1234.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS + 1
    assert (1234.0, 9.0) in kept
    assert kept == sorted(kept)


def paths(svg: str) -> list[list[tuple[str, float, float]]]:
    """The strokes of each drawn line: (M or L, x, y)."""
    found = re.findall(r'class="line [^"]*" d="([^"]*)"', svg)
    return [[(c, float(x), float(y)) for c, x, y in re.findall(r"([ML])([\d.-]+) ([\d.-]+)", d)] for d in found]


def test_a_line_is_lifted_where_a_value_is_missing():
    """A loss that was not finite at step 2 leaves a gap, not a zero; and NaN never reaches the picture."""
    svg = line_chart([Line("loss", [(1, 3.0), (2, math.nan), (3, 1.0), (4, 0.5)])])
    ((first, second, third),) = paths(svg)
    assert (first[0], second[0], third[0]) == ("M", "M", "L")
    assert "nan" not in re.sub("<title>[^<]*", "", svg)


def test_higher_values_are_drawn_higher_and_later_steps_further_right():
    ((first, second),) = paths(line_chart([Line("x", [(0, 1.0), (10, 2.0)])]))
    assert first[1] < second[1]
    assert first[2] > second[2]


def test_values_far_apart_and_constant_ones_are_drawn():
    for points in ([(1.0, 5.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 1e-12), (2.0, 1e12)], [(3.0, -2.0), (9.0, -2.0)]):
        svg = line_chart([Line("x", points)])
        for _, x, y in paths(svg)[0]:
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
        ElementTree.fromstring(svg)
    assert "no finite values" in line_chart([Line("x", [(1, math.nan)])])


def test_a_long_chart_stays_small():
    svg = line_chart([Line("x", [(float(i), math.sin(i)) for i in range(100_000)])])
    assert svg.count("<title>") <= MAX_TIPS
    assert "<circle" not in svg
    assert len(svg) < 40_000
    assert line_chart([Line("x", [(1.0 * i, 1.0) for i in range(FEW)])]).count("<circle") == FEW


def test_bars_begin_at_zero_and_carry_their_error():
    svg = ElementTree.fromstring(bar_chart([("base", -0.5, None), ("PPO", 1.0, 0.1)]))
    below, above = (bar for bar in svg.iter() if bar.get("class", "").startswith("bar"))
    zero = float(below.get("x", "")) + float(below.get("width", ""))
    assert zero == pytest.approx(float(above.get("x", "")), abs=0.2)
    assert float(above.get("width", "")) == pytest.approx(2 * float(below.get("width", "")), abs=0.2)
    assert sum(element.get("class") == "whisker" for element in svg.iter()) == 1
