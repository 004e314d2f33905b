"""What judges and the whole evaluation share."""

from __future__ import annotations

import pytest


@pytest.fixture
def scorer(tmp_path, monkeypatch) -> str:
    """A module with scoring functions, on the path."""
    (tmp_path / "my_scorer.py").write_text(
        "def length(prompt, response):\n    return len(response) / 100\n"
        "def parts(prompt, response):\n"
        "    return {'score': len(response) / 100, 'short': float(len(response) < 3), 'asked': len(prompt)}\n"
        "def fickle(prompt, response):\n    return {'score': 0.5, response: 1.0}\n"
        "def without_score(prompt, response):\n    return {'short': 1.0}\n"
        "def wordy(prompt, response):\n    return {'score': 0.5, 'short': 'yes'}\n"
        "def nameless(prompt, response):\n    return {'score': 0.5, '': 1.0}\n"
        "def nothing(prompt, response):\n    return float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_scorer"
