"""The page of a calibration: every view drawn, its figures those of the calibration, what was left out told, nothing from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from calibration.report import header, sections
from calibration.report_pictures import SIDE, ellipse, residual_plate, round_length
from calibration.simulate import Scenario, simulate
from calibration.solve import solve
from calibration.views import pack
from sinew.se3 import se3_exp


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_a_page_tells_what_the_calibration_is(mount):
    made = simulate(Scenario(mount=mount, views=12, bad_views=0.1), 2)
    views = [replace(v, name=f"<view {i}>") for i, v in enumerate(made.views)]
    result = solve(pack(views), [made.camera], mount, model="poses")
    assert len(result.rejected) == 1
    left_out = {"a&b.png": "it is blurred", **result.rejected}
    told = dict(sections(result, left_out, ("front",)))
    html = header(result, ("front",)) + "".join(told.values())
    assert "http" not in html and "<script" not in html and "<view" not in html
    assert f"known to {1e3 * result.observability[0].worst_m:.2g} mm" in html and "11 views used, 1 left out" in html
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html)]
    assert len(pictures) == 12 + 3 + 3 + 1
    arrows = [len(svg.findall("path")) for svg in pictures[:12]]
    assert arrows == [len(v.points) for v in views]
    red = ["bad" in {arrow.get("class") for arrow in svg.findall("path")} for svg in pictures[:12]]
    assert red.index(True) == [f"<view {i}>" for i in range(12)].index(next(iter(result.rejected))) and sum(red) == 1
    assert "a&amp;b.png" in told["Left out"] and "it is blurred" in told["Left out"]
    assert all(f"{v:+.6f}" in told["The result"] for v in result.T[0].ravel())


def test_what_the_views_do_not_tell_is_said_first():
    made = simulate(Scenario(motion="one_axis", views=12), 0)
    result = solve(pack(made.views), [made.camera], "in_hand", model="poses", unobservable_ok=True)
    assert "Not every direction is told" in header(result) and "one axis" in header(result)
    assert 'class="weak"' in "".join(html for _, html in sections(result, {}))


def test_many_views_are_cut_to_the_worst():
    made = simulate(Scenario(views=30, bad_views=0.07), 1)
    result = solve(pack(made.views), [made.camera], "in_hand", model="poses")
    residual = sections(result, result.rejected)[0][1]
    assert residual.count("<svg") == 24 and "The 24 worst of 30 views" in residual
    assert all(f"{name}</b>" in residual for name in result.rejected)


def test_arrows_and_ellipses_have_true_lengths():
    svg = residual_plate((640, 480), np.array([[100.0, 50.0], [1.0, 1.0]]), np.array([[0.5, -1.0], [np.nan, 0.0]]), np.ones(2, bool), 20.0)
    assert "M100 50l10.0 -20.0" in svg and svg.count("<path") == 1
    drawn = ellipse(np.diag([4.0, 1.0]), ("x", "y"), " mm", 10.0)
    wide, high = (float(v) for v in re.findall(r' r[xy]="([\d.]+)"', drawn))
    assert wide == pytest.approx(SIDE / 20 * 2 * np.sqrt(5.991), abs=0.1) and high == pytest.approx(wide / 2, abs=0.1)
    assert [round_length(v) for v in (1.0, 3.0, 80.0)] == [0.5, 2.0, 50.0]


def test_before_and_after_are_drawn_on_the_pictures(tmp_path):
    made = simulate(Scenario(views=10, mount="to_hand"), 3)
    result = solve(pack(made.views), [made.camera], "to_hand", model="poses")
    for view in made.views[:9]:
        cv2.imwrite(str(tmp_path / f"{view.name}.png"), np.full((720, 1280), 90, dtype=np.uint8))
    pictures = {view.name: tmp_path / f"{view.name}.png" for view in made.views}  # one of them is not there
    off = made.X @ se3_exp(np.array([0.01, 0, 0, 0, 0.01, 0]))
    for drawing, called in ((None, "closed form"), (off, "the drawing")):
        (title, html), *_ = sections(result, {}, ("front",), pictures, drawing)
        assert title == "Before and after" and called in html and html.count("data:image/jpeg;base64,") == html.count("<svg") >= 5
        assert html.count('class="before"') == html.count('class="after"') == html.count("<svg")
        told = [[float(v) for v in pair] for pair in re.findall(r"([\d.]+) px before, ([\d.]+) px after", html)]
        assert len(told) == html.count("<svg") and np.median([b for b, _ in told]) > np.median([a for _, a in told])
        svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html)[0])
        rows, columns = 5, 7
        assert svg.findall("path")[1].get("d", "").count("M") == rows * (columns - 1) + columns * (rows - 1)
    assert sections(result, {})[0][0] != "Before and after"
