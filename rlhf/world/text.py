"""Text made comparable: one form for what is written with other spaces, widths, dashes or variants of a character."""

import re
import unicodedata
from functools import lru_cache

_CJK = r"一-鿿"
_VARIANTS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "臺": "台", "秘": "祕", "裏": "裡"}
)
_WORDS = re.compile(rf"[a-z0-9]+(?:['-][a-z0-9]+)*|[{_CJK}]")


# One response is read by several judges in a row.
@lru_cache(maxsize=1024)
def normalised(text: str) -> str:
    """The text with full-width forms, accents, quotes, dashes and common variants made one, and spaces made single.

    Spaces beside a Chinese character and before a degree sign are dropped (攝氏 100 度 and 攝氏100度 are the same). Letter case
    is kept.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_VARIANTS)
    without_accents = "".join(mark for mark in unicodedata.normalize("NFD", folded) if not unicodedata.combining(mark))
    single_spaced = re.sub(r"\s+", " ", without_accents).strip()
    return re.sub(rf"(?<=[{_CJK}]) | (?=[{_CJK}°])", "", single_spaced)


@lru_cache(maxsize=1024)
def words_of(text: str) -> tuple[str, ...]:
    """The English words (lower case), numbers and single Chinese characters of a normalised text, in order."""
    return tuple(_WORDS.findall(text.lower()))
