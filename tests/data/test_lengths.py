"""Lengths in tokens as a histogram."""

from __future__ import annotations

import numpy as np

from data.lengths import histogram


def test_a_histogram_breaks_at_the_limit() -> None:
    assert histogram("prompt", np.array([1, 3, 3, 5, 6, 7, 40]), limit=5) == [
        "tokens of prompt (7 measured; 50% 5, 90% 20, 99% 38, longest 40):",
        "      0-1      ████████████████████ 1",
        "      2-3      ████████████████████████████████████████ 2",
        "      4-5      ████████████████████ 1",
        "      6-7      ████████████████████████████████████████ 2  over the limit",
        "     32-63     ████████████████████ 1  over the limit",
    ]
