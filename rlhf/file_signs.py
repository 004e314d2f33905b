"""What a file is whose name promises something else: a Git LFS pointer, an archive, another encoding, a web page.

People meet these where they expected rows or weights: a clone without `git lfs pull`, a download that got a login page,
a file that a Windows program saved. A reader that only says "not valid JSON" does not help them. Imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from rlhf.json_lines import Opens

_LOOK_AT = 1024  # bytes
_LFS = b"version https://git-lfs.github.com/spec/"
_PACKED = "; unpack it first"
# The first bytes of a file → what it is, and the way out.
_SIGNS: tuple[tuple[bytes, str], ...] = (
    (_LFS, "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
    (b"/annex/objects/", "is a git-annex pointer, not the file itself; fetch that with `git annex get`"),
    (b"\x1f\x8b", f"is compressed with gzip{_PACKED} (gunzip)"),
    (b"\x28\xb5\x2f\xfd", f"is compressed with zstd{_PACKED} (unzstd)"),
    (b"BZh", f"is compressed with bzip2{_PACKED} (bunzip2)"),
    (b"\xfd7zXZ\0", f"is compressed with xz{_PACKED} (unxz)"),
    (b"\x04\x22\x4d\x18", f"is compressed with lz4{_PACKED} (unlz4)"),
    (b"PK\x03\x04", f"is a zip archive or a spreadsheet{_PACKED}, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", f"is a 7z archive{_PACKED}"),
    (b"Rar!", f"is a RAR archive{_PACKED}"),
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet or document of Microsoft Office; save it as CSV in UTF-8"),
    (b"PAR1", "is a Parquet file; call it .parquet"),
    (b"ARROW1", "is an Arrow file; call it .arrow"),
    (b"\xff\xff\xff\xff", "is an Arrow stream; call it .arrow"),
    (b"SQLite format 3\0", "is an SQLite database; save the table as JSON lines or CSV"),
    (b"\x93NUMPY", "is a NumPy array; save its rows as JSON lines"),
    (b"%PDF-", "is a PDF document"),
)
_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Without a byte order mark: ASCII characters with the NUL bytes that an encoding puts around them.
_WIDE = (
    (re.compile(rb"(?:[\t\n\r -~]\0\0\0){2}"), "UTF-32LE"),
    (re.compile(rb"(?:\0\0\0[\t\n\r -~]){2}"), "UTF-32BE"),
    (re.compile(rb"(?:[\t\n\r -~]\0){2}"), "UTF-16LE"),
    (re.compile(rb"(?:\0[\t\n\r -~]){2}"), "UTF-16BE"),
)
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def lfs_pointer(path: Path) -> bool:
    """Whether a file is only the pointer that Git LFS leaves in a clone; False where there is no file."""
    return _beginning(path).startswith(_LFS)


def what_it_is(path: Path | Opens) -> str | None:
    """What a file is that should be UTF-8 text, in one clause with a way out ("is compressed with gzip; …"); None for
    text, for an empty file and for one that cannot be read."""
    start = _beginning(path)
    for sign, what in _SIGNS:
        if start.startswith(sign):
            return what
    encoding = next((name for mark, name in _ENCODINGS if start.startswith(mark)), None)
    encoding = encoding or next((name for pattern, name in _WIDE if pattern.match(start)), None)
    if encoding:
        return f"is {encoding} text; save it as UTF-8 (iconv -f {encoding} -t UTF-8 OLD > NEW)"
    if start[257:262] == b"ustar":
        return f"is a tar archive{_PACKED}"
    if _PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "is an HTML page, perhaps of an error or a login; download the file itself"
    return None


def _beginning(path: Path | Opens) -> bytes:
    try:
        with path.open("rb") as file:
            return bytes(file.read(_LOOK_AT))
    except OSError:
        return b""
