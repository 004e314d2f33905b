"""The marks by which a chat template says what the assistant writes: `{% generation %} … {% endgeneration %}`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_OPENS = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_CLOSES = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
# Characters for private use; `mark_control_tokens` of transformers has the two before them.
_START, _END = "\U000f0002", "\U000f0003"


class Span(NamedTuple):
    """Characters or tokens from `start`, up to but not including `end`."""

    start: int
    end: int

    def tokens(self, of: Sequence[int | None], count: int) -> Span:
        """Characters as tokens. `of` each character is its first token (None: a blank that no token has), in all there
        are `count` tokens. A token counts if it has a part of a character of the span."""

        def first(start: int) -> int:
            return next((token for token in of[start:] if token is not None), count)

        last = next((token for token in reversed(of[: self.end]) if token is not None), -1)
        return Span(first(self.start), max(first(self.end), last + 1))


def has_marks(source: str) -> bool:
    return bool(_OPENS.search(source))


def is_clear(text: str) -> bool:
    """Whether a text has none of the characters that stand for marks."""
    return _START not in text and _END not in text


def shown(source: str) -> str:
    """A template that writes a character where a mark is, for `read`. A `call` has the scope that such a block has."""
    source = _CLOSES.sub(r"{%\1 endcall \2%}", _OPENS.sub(r"{%\1 call zqmarked() \2%}", source))
    # the macro ends with a line break, which templates drop after a block, so the source begins a line as before
    macro = f"{{% macro zqmarked() %}}{{{{ '{_START}' }}}}{{{{ caller() }}}}{{{{ '{_END}' }}}}{{% endmacro %}}"
    return f"{macro}\n{source}"


def read(text: str) -> tuple[str, list[Span]]:
    """What a template of `shown` wrote, without the marks, and the characters between them."""
    parts = re.split(f"([{_START}{_END}])", text)
    plain, spans, start = "", [], 0
    for part in parts:
        if part == _START:
            start = len(plain)
        elif part == _END:
            spans.append(Span(start, len(plain)))
        else:
            plain += part
    return plain, [span for span in spans if span.end > span.start]
