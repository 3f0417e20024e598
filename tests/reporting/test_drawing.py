"""The look of figures: colors that can be told apart, markup that is safe to embed, no global change."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from latentflows.reporting.drawing import (
    CSS_VARIABLES,
    SERIES_DARK,
    SERIES_LIGHT,
    finish,
    series_style,
    styled_axes,
    wrap,
)

DARK_SURFACE = "#15181c"
# Machado, Oliveira & Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009,
# severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear_rgb(color):
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted([float(linear_rgb(one) @ weights), float(linear_rgb(other) @ weights)])
    return (high + 0.05) / (low + 0.05)


def lab(linear):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize(("palette", "surface"), [(SERIES_LIGHT, "#ffffff"), (SERIES_DARK, DARK_SURFACE)])
def test_every_color_stands_out_from_the_page(palette, surface):
    assert min(contrast(color, surface) for color in palette) >= 3.0


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("palette", [SERIES_LIGHT, SERIES_DARK])
def test_colors_stay_apart_for_color_blind_readers(palette, deficiency):
    seen = [lab(np.array(DEFICIENCIES[deficiency]) @ linear_rgb(color)) for color in palette]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) >= 20.0


def test_lines_stay_unique_past_the_palette():
    assert len({str(series_style(index)) for index in range(24)}) == 24


def draw(label="a < b & $x_1$"):
    with styled_axes() as axes:
        axes.plot([1, 2], [3, 4], label=label, color=SERIES_LIGHT[0])
        axes.legend()
        return finish(axes, "test", "A <title>", 'Says "less" & more.')


def test_standalone_svg_is_well_formed_keeps_text_and_its_colors():
    drawing = draw()
    root = ElementTree.fromstring(drawing.standalone())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & $x_1$" in texts
    assert root[0].text == "A <title>"
    assert SERIES_LIGHT[0] in drawing.standalone()


def test_inline_svg_takes_every_color_from_the_page_and_has_a_name():
    svg = draw().inline()
    root = ElementTree.fromstring(svg)
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "var(--series-1)" in svg
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Says "less" & more.'
    assert root.get("width") is None
    assert root.get("viewBox")


def test_inline_names_are_those_of_the_drawing_and_references_resolve():
    svg = draw().inline()
    names = set(re.findall(r'\bid="([^"]+)"', svg))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert all(name.startswith("test-") for name in names)
    assert references
    assert {a or b for a, b in references} <= names


def test_the_same_content_gives_the_same_bytes():
    assert draw().svg == draw().svg


def test_drawing_changes_no_setting_of_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before


def test_each_color_has_one_variable():
    assert len(set(CSS_VARIABLES.values())) == len(CSS_VARIABLES) == 4 + len(SERIES_LIGHT)
    assert len(SERIES_DARK) == len(SERIES_LIGHT)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("Gaussian posterior, N(0, I)", ["Gaussian posterior,", "N(0,\N{NO-BREAK SPACE}I)"]),
        ("IAF posterior, Real NVP prior", ["IAF posterior,", "Real NVP prior"]),
        ("N(0, I), same sizes", ["N(0,\N{NO-BREAK SPACE}I), same sizes"]),
        ("a rather long name of an arm", ["a rather long", "name of an arm"]),
        ("one, two, three, four, five, six", ["one, two, three,", "four, five, six"]),
        ("Real NVP prior (six layers, width sixty)", ["Real NVP prior (six", "layers, width sixty)"]),
        ("antidisestablishmentarianism", ["antidisestablishmentaria", "nism"]),
        ("", [""]),
    ],
)
def test_labels_break_where_a_reader_would(label, lines):
    assert wrap(label).split("\n") == lines
