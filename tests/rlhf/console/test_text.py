"""Numbers as people read them."""

from __future__ import annotations

from rlhf.console.text import clean, duration, figure


def test_figures() -> None:
    shown = [figure(v) for v in (1234567, 0.123456, 1e-5, True, None, "text", 12.0)]
    assert shown == ["1,234,567", "0.1235", "1e-05", "True", "", "text", "12"]
    assert [duration(s) for s in (4.21, 42, 187, 7800)] == ["4.2 s", "42 s", "3:07", "2:10:00"]


def test_bytes_of_a_name_that_are_not_text_are_shown() -> None:
    """print() of the path of b"caf\\xe9" ended in a UnicodeEncodeError."""
    assert clean("caf\udce9 é 🙂\x1b") == "caf\\xe9 é 🙂"
