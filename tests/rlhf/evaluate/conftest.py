"""What judges and the whole evaluation share."""

from __future__ import annotations

import pytest


@pytest.fixture
def scorer(tmp_path, monkeypatch) -> str:
    """A module with scoring functions, on the path."""
    (tmp_path / "my_scorer.py").write_text(
        "def length(prompt, response):\n    return len(response) / 100\n"
        "def nothing(prompt, response):\n    return float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_scorer"
