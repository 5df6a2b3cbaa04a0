"""What a crawl adds to good text: boilerplate, remains of HTML, duplicates, gibberish. Each is marked, to score the cleaning."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from numpy.random import Generator

from rlhf.data.records import Document
from rlhf.world.draw import pick
from rlhf.world.facts import Language

_BOILERPLATE: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "This website uses cookies to improve your experience.",
        "Please enable JavaScript to view this page.",
        "All rights reserved. Terms of use. Privacy policy.",
        "Click here to subscribe to our newsletter!",
    ),
    "zh": (
        "本網站使用 Cookie 以提升您的瀏覽體驗。",
        "請啟用 JavaScript 以瀏覽本頁面。",
        "版權所有，未經許可請勿轉載。使用條款｜隱私權政策",
        "按此訂閱電子報，好康不漏接！",
    ),
}
_MARKUP = (
    '<div class="content">{text}</div>',
    "<p>{text}</p><br/>&nbsp;",
    '{text} <a href="#">&raquo;</a> <script>var a=1;</script>',
)
_SLIPS: Mapping[Language, tuple[str, ...]] = {
    "en": ("Note: ", "Today we learn this. "),
    "zh": ("註：", "今天來學這個。"),
}


def _boilerplate(document: Document, generator: Generator) -> str:
    lines = _BOILERPLATE[document.metadata["language"]]
    notice = [lines[index] for index in generator.permutation(len(lines))[:2]]
    return "\n".join([notice[0], document.text, notice[1]])


def _html(document: Document, generator: Generator) -> str:
    return pick(_MARKUP, generator).format(text=document.text)


def _duplicate(document: Document, generator: Generator) -> str:
    return document.text


def _near_duplicate(document: Document, generator: Generator) -> str:
    return pick(_SLIPS[document.metadata["language"]], generator) + document.text


def _gibberish(document: Document, generator: Generator) -> str:
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789#@%&*~^|{}")
    words = (
        "".join(generator.choice(letters, size=generator.integers(3, 12))) for _ in range(generator.integers(8, 20))
    )
    return " ".join(words)


NOISE: Mapping[str, Callable[[Document, Generator], str]] = MappingProxyType(
    {
        "boilerplate": _boilerplate,
        "html": _html,
        "duplicate": _duplicate,
        "near_duplicate": _near_duplicate,
        "gibberish": _gibberish,
    }
)


def add_noise(documents: Sequence[Document], counts: Mapping[str, int], generator: Generator) -> list[Document]:
    """The documents, followed by as many noisy ones of each kind as counted, each made from a clean document drawn at random."""
    noisy = []
    for kind, count in counts.items():
        for _ in range(count):
            source = pick(documents, generator)
            noisy.append(Document(NOISE[kind](source, generator), metadata={**source.metadata, "noise": kind}))
    return [*documents, *noisy]
