"""docs/api.md is what the docstrings say, and every name on it has one."""

from __future__ import annotations

import re

from scripts.api_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m scripts.api_page"


def test_every_public_name_has_a_docstring() -> None:
    """Under each heading there is more than a signature."""
    sections = re.split(r"^### ", page(), flags=re.MULTILINE)[1:]
    assert len(sections) > 40
    for section in sections:
        name, _, body = section.partition("\n")
        prose = [line for line in body.splitlines() if line.strip() and not line.startswith(("    ", "**`", "## "))]
        assert prose, name
