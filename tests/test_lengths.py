"""The figure of the lengths of programs: its numbers, against straight lines done by hand."""

import math

import pytest

from report import lengths


def curve(*points):
    return [{"flops": 1e12 * tflop, "pass@1": rate} for tflop, rate in points]


CURVES = {
    "base": {(1, 0): curve((0, 0.1), (10, 0.95)), (8, 0): curve((0, 0.0), (30, 0.0))},
    "ntp": {(1, 0): curve((12, 0.2), (20, 0.3))},
    "ra3": {(1, 0): curve((4, 0.95), (6, 0.99)), (8, 0): curve((12, 0.5), (22, 1.0))},
}


def test_the_numbers():
    """At 4 and 6 TFLOP the base has .1 + .4 x .85 = .44 and .61; NTP's mid-training took 12."""
    values = lengths.measures(CURVES)
    assert values["base"][1, 0] == pytest.approx((0.44, 0.61, 10 * 0.8 / 0.85))
    assert values["base"][8, 0] == pytest.approx((0.0, 0.0, math.nan), nan_ok=True)
    assert values["ntp"][1, 0] == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert values["ra3"][1, 0] == pytest.approx((0.95, 0.99, 4.0))
    assert values["ra3"][8, 0] == pytest.approx((0.5, 1.0, 20.0))


def test_the_table_says_what_is_missing():
    text = lengths.lengths_table(CURVES)
    assert "| 1 | ntp | 1 | - | - | - | 0 |" in text
    assert "| 8 | base | 1 | 0.000 | 0.000 | - | 0 |" in text
    assert "| 8 | ra3 | 1 | 0.500 | 1.000 | 20.0 | 1 |" in text
    assert "| 8 | ntp" not in text


def test_the_figure_is_a_picture():
    pytest.importorskip("matplotlib", reason="extra report")
    rates = {"best-of-20": {(1, 0): 0.9, (8, 0): 0.1}, "ra3": {(1, 0): 1.0, (8, 0): 0.5}}
    assert lengths.lengths_figure(rates, CURVES).startswith(b"\x89PNG")
