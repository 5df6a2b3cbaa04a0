"""Tokenizers of both families and the folder of real data sets, shared by the tests of the data layer."""

from pathlib import Path

import pytest

from rlhf.data.tokenizers import load_tokenizer, train_tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

ENGLISH = (
    "The capital of France is Paris. USER: What is the highest mountain? AI: It is Jade Mountain, 3952 metres high. "
)
CHINESE = "台灣最高的山是玉山，海拔三千九百五十二公尺。法國的首都是巴黎。"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder with real data is not here")
    return SHARED


@pytest.fixture(scope="session")
def byte_level():
    return train_tokenizer([ENGLISH, CHINESE] * 4, 400)


@pytest.fixture(scope="session")
def sentence_piece():
    """A small tokenizer of the SentencePiece family: a space is put before the text and taken off again, bytes as fallback."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["▁is", "▁P", "ar", "is", "▁the", "▁Paris", "th", "▁t", "▁th", "▁i", "ari", "aris", "▁Par"]
    letters = sorted({letter for word in words for letter in word})
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "▁t",
        "▁th",
        "▁the",
        "▁P",
        "ar",
        "is",
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "P"), ("a", "r"), ("i", "s")]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def gpt2(shared):
    return load_tokenizer(shared / "data/tokenizers/gpt2")
