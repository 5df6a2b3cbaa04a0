"""Encoding and decoding a piece of a text exactly, whatever stands before it.

A tokenizer made for whole texts may put a space before what it encodes and take one off what it decodes (SentencePiece does).
Inside a dialogue that would change the text at every turn, so pieces go through copies of the tokenizer that do neither.
"""

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TextCodec:
    """What a tokenizer does with pieces of text.

    Attributes:
        opening: encodes the opening of a dialogue, in which the marks of special tokens count as such.
        continuation: encodes what follows; marks of special tokens count as such.
        literal: encodes and decodes what somebody says; a special token's mark in it is ordinary text.
        document: encodes a whole text as the tokenizer was made to; a special token's mark in it is ordinary text.
    """

    opening: "Tokenizer"
    continuation: "Tokenizer"
    literal: "Tokenizer"
    document: "Tokenizer"

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a piece, without special tokens."""
        return self.literal.decode(list(tokens), skip_special_tokens=True)


_CODECS: "weakref.WeakKeyDictionary[PreTrainedTokenizerFast, tuple[int, TextCodec]]" = weakref.WeakKeyDictionary()


def text_codec(tokenizer: "PreTrainedTokenizerFast") -> TextCodec:
    """The tokenizer's codec, made once and again after tokens were added."""
    size, codec = _CODECS.get(tokenizer, (None, None))
    if codec is None or size != len(tokenizer):
        codec = _make_codec(tokenizer.backend_tokenizer)
        _CODECS[tokenizer] = (len(tokenizer), codec)
    return codec


def _make_codec(backend: "Tokenizer") -> TextCodec:
    content = json.loads(backend.to_str())
    opening, document = _copy(content, literal=False), _copy(content, literal=True)
    exact = _without_added_space(content)
    if exact == content:  # as in byte-level tokenizers; copies of a large vocabulary take a second
        return TextCodec(opening, opening, document, document)
    return TextCodec(opening, _copy(exact, literal=False), _copy(exact, literal=True), document)


def _copy(content: dict[str, Any], *, literal: bool) -> "Tokenizer":
    """A tokenizer with this content that neither cuts nor pads; a literal one takes special tokens' marks as ordinary text."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(json.dumps(content))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = literal
    return copy


def _without_added_space(content: dict[str, Any]) -> dict[str, Any]:
    return {
        **content,
        "normalizer": _edited(content["normalizer"]),
        "pre_tokenizer": _edited(content["pre_tokenizer"]),
        "decoder": _edited(content["decoder"]),
    }


def _edited(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """The component without its part in adding or removing a space at the start; None when that was all it did."""
    if component is None:
        return None
    for parts in ("normalizers", "pretokenizers", "decoders"):
        if parts in component:
            kept = [edited for part in component[parts] if (edited := _edited(part)) is not None]
            return {**component, parts: kept}
    match component["type"]:
        case "Prepend" | "Strip":
            return None
        case "Metaspace":
            return {**component, "prepend_scheme": "never"}
        case "ByteLevel":
            return {**component, "add_prefix_space": False}
    return component
