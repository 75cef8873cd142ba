# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.viewer.text import cell_width, clean, clip, duration, share, wrap


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0"),
        (-5, "0"),
        (812, "812 ns"),
        (1_000, "1 µs"),
        (12_340, "12.3 µs"),
        (9_996, "10 µs"),
        (999_700, "1 ms"),
        (310_000_000, "310 ms"),
        (1_254_000_000, "1.25 s"),
        (125_000_000_000, "2 min 5 s"),
        (11_520_000_000_000, "3 h 12 min"),
    ],
)
def test_duration_has_three_digits_and_a_unit(nanoseconds, expected):
    """Durations are rounded to three digits in the unit people would choose."""
    assert expected == duration(nanoseconds)


@pytest.mark.parametrize(
    ("part", "expected"), [(0, "0 %"), (1, "<1 %"), (620, "62 %"), (999, ">99 %"), (1000, "100 %")]
)
def test_share_never_rounds_to_nothing_or_all(part, expected):
    """Only nothing is 0 % and only all is 100 %."""
    assert expected == share(part, 1000)


def test_clean_makes_control_characters_visible():
    """Escape codes, line breaks, direction overrides and lone surrogates come out as harmless text."""
    assert r"a\x1b[31m\x0a\u202e\ud800\x9bb" == clean("a\x1b[31m\n\u202e\ud800\x9bb")


@given(st.text())
def test_cleaned_text_is_printable_and_encodable(text):
    """No text gets a control character, or anything outside ASCII where asked, to the terminal."""
    assert clean(text).isprintable()
    clean(text).encode()
    assert clean(text, ascii_only=True).isascii()


@given(st.text(), st.integers(0, 30))
def test_clip_never_exceeds_its_width(text, width):
    """Wide and combining characters are counted in cells."""
    assert cell_width(clip(clean(text), width)) <= width


def test_wide_characters_take_two_cells():
    """East Asian wide characters count twice, combining marks not at all."""
    assert (4, 1) == (cell_width("日本"), cell_width("e\u0301"))


@given(st.text(), st.integers(2, 30))
def test_wrap_fits_and_loses_nothing(text, width):
    """Wrapped lines are never wider than asked, and together hold every word."""
    lines = wrap(clean(text), width)

    assert all(cell_width(line) <= width for line in lines)
    assert clean(text).replace(" ", "") == "".join(lines).replace(" ", "")
