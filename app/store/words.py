"""How prompts are spelled for search, so that every database finds the same.

Case, accents and punctuation do not count; a word is found by its beginning. Chinese, Japanese and
Korean are written without spaces, so each of their characters is a word.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")


def words_of(text: str) -> list[str]:
    """The words of a text as they are searched, in order."""
    # Composed again after the marks are gone: a Korean syllable falls into letters in between.
    bare = "".join(
        char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)
    )
    spaced = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", bare).casefold())
    return _WORD.findall(spaced)
