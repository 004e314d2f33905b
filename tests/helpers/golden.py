"""Golden tests of the caches: a cache's content belongs to the FORMAT number in its key."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def check_content(content: Any, digest: str, *, cache: str, file: str) -> None:
    """Compare a cache's content, as JSON values that its reader gives, with the digest of its earlier content."""
    text = json.dumps(content, sort_keys=True)
    found = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    assert found == digest, (
        f"the content of the {cache} cache changed: raise FORMAT in {file} and put the new digest here ({found})"
    )
