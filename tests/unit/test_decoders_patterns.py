# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.patterns import compile_pattern
from ebpftrace.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"a$", "a\n", False),
        (r"(?m)a$", "a\nb", True),
        (r"a\z", "a", True),
        (r"a\z", "a\n", False),
        (r"a[$]", "a$", True),
        (r"\Qa.b*\E+", "a.b**", True),
        (r"\Qa.b", "axb", False),
        (r"^(?P<x>a)(?<y>b)$", "ab", True),
        (r"(?<!a)b", "ab", False),
        (r"^\x{e9}$", "é", True),
        (r"^[\x{e9}\x{41}]+$", "éA", True),
        (r"^[[:alpha:]_]+$", "a_Z", True),
        (r"^[^[:digit:]]$", "5", False),
        (r"^[[a]+$", "[a", True),
        (r"^[]a]+$", "a]", True),
        (r"^[^]a]+$", "a", False),
        (r"^[\]a]+$", "]a", True),
        (r"^[a&&b]+$", "a&b", True),
        (r"^[+--]+$", "+,-", True),
        (r"^\d$", "٣", False),
        (r"(?i)^ABC$", "abc", True),
        (r"^(?i:A)b$", "ab", True),
        (r"^/system\.slice/[^/]+\.service$", "/system.slice/ssh.service", True),
    ],
)
def test_as_re2(pattern, text, found):
    """A pattern finds what RE2 finds, and Python has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = compile_pattern(pattern)

    assert found == bool(compiled.search(text))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a(", "missing ), unterminated subpattern"),
        (r"\pL", "bad escape \\p"),
        ("(?U)a", "unknown extension"),
        ("a(?i)b", "global flags not at the start of the expression"),
        ("[[:letter:]]", "there is no class [:letter:]"),
        ("[a", "unterminated character set"),
        (r"\x{110000}", "chr"),
        ("a" + chr(92), "bad escape"),
    ],
)
def test_not_a_pattern(pattern, reason):
    """What cannot be used is an error that has the pattern and the reason."""
    with pytest.raises(ConfigError) as caught:
        compile_pattern(pattern)

    assert str(caught.value).startswith(f"the regexp {pattern!r} cannot be used: {reason}")


@given(st.text(st.sampled_from(r"ab[]^\\Q E{}x()?:<>-&|~$.*+,1P=!zZ/")))
def test_any_pattern(pattern):
    """Any text is a pattern, or it is an error of the program's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compile_pattern(pattern)
        except ConfigError:
            return


@given(st.text(max_size=20), st.text(max_size=20))
def test_quoted(text, other):
    """What is quoted means itself."""
    if r"\E" in text or text.endswith(chr(92)):
        return

    assert (text == other) == bool(compile_pattern(rf"\A\Q{text}\E\z").search(other))
