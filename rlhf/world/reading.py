"""What the annotator sees in a response before judging it: refusal, question, compliance, repetition, length, language."""

import re
from collections.abc import Sequence

from rlhf.world.facts import Language
from rlhf.world.text import normalised, words_of

# A Chinese character carries about this much of an English word, so that lengths compare across the languages.
CHARACTER_WORDS = 0.6

_REFUSALS = re.compile(
    r"\b(?:can't|cannot|can not|won't|will not|unable to|not able to|refuse to|must not)\b[^.!?]{0,20}?"
    r"\b(?:help|assist|support|answer|do|explain|tell)\b|\bI refuse\b"
    r"|(?:不能|無法|不會|不可以|不便|沒辦法|不願意|拒絕)[^。!?]{0,4}?(?:幫|協助|提供|回答|配合|教)|幫不上忙|我拒絕",
    re.IGNORECASE,
)
_OPENERS = re.compile(
    r"(?<!not )\bsure\b|\b(?:of course|no problem|here is how|here's how)\b"
    r"|(?:^|[。!?,])好的|當然可以|沒問題|做法如下|(?<!不)可以,",
    re.IGNORECASE,
)
_STEPS = re.compile(r"\bfirst\b[^!?]*\bthen\b|\bstep (?:1|one)\b|先[^!?]*(?:再|然後|接著|最後)", re.IGNORECASE)
_REPEATED_ENGLISH = re.compile(r"(?<![a-z0-9])([a-z0-9'-]+(?: [a-z0-9'-]+){0,5}) \1(?![a-z0-9])")
_REPEATED_CHINESE = re.compile(r"([一-鿿]{1,12})\1\1|([一-鿿]{4,12})\2")
_SENTENCE_ENDS = re.compile(r"[。!?;\n]+|\.(?=\s|$)")
_FINISHED = re.compile(r"[.。!?)」\"'…]$")


def is_refusal(text: str) -> bool:
    """True when the text says, in either language, that it will not help."""
    return _REFUSALS.search(normalised(text)) is not None


def asks_back(text: str) -> bool:
    """True when the response asks something."""
    return "?" in normalised(text)


def compliance(text: str) -> float:
    """How far the text goes along with a request: 0 no sign, 0.5 agrees or lists steps, 1 both."""
    plain = normalised(text)
    return (bool(_OPENERS.search(plain)) + bool(_STEPS.search(plain))) / 2


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that contain a word."""
    plain = normalised(text).replace("Mt. ", "Mt ")
    return [sentence.strip() for sentence in _SENTENCE_ENDS.split(plain) if words_of(sentence)]


def length_in_words(words: Sequence[str]) -> float:
    """The length of some words, a Chinese character counting 0.6 of one."""
    return sum(1.0 if word.isascii() else CHARACTER_WORDS for word in words)


def language_share(words: Sequence[str], language: Language) -> float:
    """The share of the words that is in a language; 1 when there is nothing to tell by (a number, a symbol)."""
    words = [word for word in words if not word.isdigit()]
    english = length_in_words([word for word in words if word.isascii()])
    total = length_in_words(words)
    if not total:
        return 1.0
    return english / total if language == "en" else 1.0 - english / total


def is_degenerate(text: str) -> bool:
    """True for text no person would send: repeated words, phrases or sentences, broken characters, mostly marks.

    Flagged are: one to six English words said twice in a row in one sentence; Chinese characters said three times in a row, or
    four and more said twice; a sentence said twice; fewer than half of the words distinct in a text of twelve or more; more
    marks than letters.
    """
    plain = normalised(text)
    words = words_of(plain)
    sentences = [" ".join(words_of(sentence)) for sentence in sentences_of(text)]
    letters = sum(letter.isalnum() for letter in plain)
    marks = sum(not letter.isspace() for letter in plain) - letters
    return (
        "\ufffd" in plain
        or _REPEATED_ENGLISH.search(" | ".join(sentences)) is not None
        or _REPEATED_CHINESE.search("".join(words)) is not None
        or len(set(sentences)) < len(sentences)
        or (len(words) >= 12 and len(set(words)) < len(words) / 2)
        or marks > letters
    )


def is_unfinished(text: str) -> bool:
    """True for a response of more than four words that stops without a closing mark."""
    plain = normalised(text)
    return length_in_words(words_of(plain)) > 4 and _FINISHED.search(plain) is None
