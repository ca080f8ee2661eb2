"""What others wrote, made harmless for a terminal.

Keys, errors and dead letters come from anybody: a control character could move the cursor, an escape sequence
change the screen, a bidirectional override show a text as another one.
"""

from __future__ import annotations

import codecs
import unicodedata

# Of a text's characters, so many hundredths may be unprintable; above, its bytes are shown.
_TOLERATED = 10


def escaped(text: str, keep: str = "") -> str:
    """`text` with every character that does not print as itself, other than those of `keep`, written out:
    `\\x1b`, `\\n`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if _prints(char) or char in keep else _written(char) for char in text)


def escaped_json(text: str) -> str:
    """JSON text with such characters as `\\uXXXX`: the same JSON. Line breaks between values stay."""
    if text.isprintable():
        return text
    return "".join(char if _prints(char) or char == "\n" else _utf16(char) for char in text)


def shown(data: bytes, most: int = 4096) -> list[str]:
    """The first `most` bytes as lines: text if it is mostly that, else a hex dump."""
    head, is_whole = data[:most], len(data) <= most
    seen = _decoded(head, "replace", is_whole)
    strange = sum(char == "\ufffd" or not (_prints(char) or char in "\r\n\t") for char in seen)
    if strange * 100 > _TOLERATED * len(seen):
        return _hex(head)
    return [escaped(line) for line in _decoded(head, "backslashreplace", is_whole).split("\n")]


def _decoded(data: bytes, errors: str, is_whole: bool) -> str:
    # A character that was cut through at the end is left out, not called invalid.
    return codecs.getincrementaldecoder("utf-8")(errors).decode(data, final=is_whole)


def _hex(data: bytes) -> list[str]:
    lines = []
    for offset in range(0, len(data), 16):
        part = data[offset : offset + 16]
        digits = " ".join(f"{byte:02x}" for byte in part)
        letters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        lines.append(f"{offset:08x}  {digits:<47}  {letters}")
    return lines


def _prints(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of other scripts are no danger


def _written(char: str) -> str:
    return char.encode("unicode_escape", errors="backslashreplace").decode()


def _utf16(char: str) -> str:
    units = char.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))
