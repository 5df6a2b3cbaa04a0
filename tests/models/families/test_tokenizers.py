"""The tokenizers that come with the families: padding, the USER/AI template over several turns, and what is exported."""

import json

import numpy as np
import pytest

from rlhf.data.encoding import decode_response, encode_demonstration, encode_prompt, encode_response
from rlhf.data.records import Message
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import check_vocabulary, load_tokenizer
from rlhf.models.hub import load_transformer, save_transformer

transformers = pytest.importorskip("transformers")

TEXTS = ["USER: What is the capital? AI: It is Paris. ", "And of Japan? Tokyo, of course."] * 4
DIALOGUE = [
    Message("user", "What is the capital?"),
    Message("assistant", "It is Paris."),
    Message("user", "And of Japan?"),
    Message("assistant", "Tokyo, of course."),
]


def byte_level(special: list[str], bos: str | None):
    """GPT-2's kind: letters are bytes, a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def metaspace(special: list[str], bos: str | None, model: str = "bpe"):
    """SentencePiece's kind: spaces become ▁, one is put before the text; letters that are unknown fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    unknown = special[0]
    if model == "bpe":
        backend = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=tokens)
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=330, special_tokens=tokens, unk_token=unknown)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


# What a family's tokenizer is made of: (backend, special tokens, padding token expected after loading)
KINDS = {
    "gpt2, pythia: one special token": (
        lambda: byte_level(["<|endoftext|>"], None), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "<|endoftext|>",
    ),
    "pythia: a padding token in the vocabulary": (
        lambda: byte_level(["<|endoftext|>", "<|padding|>"], None),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "<|padding|>",
    ),
    "opt: begins with </s>": (
        lambda: byte_level(["<s>", "<pad>", "</s>", "<unk>"], "</s>"),
        {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>",
    ),
    "qwen: no beginning": (
        lambda: byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "<|endoftext|>",
    ),
    "llama3: byte level with a beginning": (
        lambda: byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"], "<|begin_of_text|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, "<|finetune_right_pad_id|>",
    ),
    "llama2, mistral: metaspace": (
        lambda: metaspace(["<unk>", "<s>", "</s>"], "<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "<unk>",
    ),
    "gemma: metaspace with padding": (
        lambda: metaspace(["<pad>", "<eos>", "<bos>", "<unk>"], "<bos>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>",
    ),
    "unigram": (
        lambda: metaspace(["<unk>", "</s>", "<pad>"], None, "unigram"),
        {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>",
    ),
}  # fmt: skip


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, tmp_path_factory):
    make, special, _ = KINDS[kind]
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=make(), clean_up_tokenization_spaces=False, **special
    ).save_pretrained(folder)
    loaded = load_tokenizer(folder)
    apply_template(loaded, "user_ai")
    return loaded


def test_padding_stands_for_nothing_else_where_the_vocabulary_has_room(tokenizer, kind):
    assert tokenizer.pad_token == KINDS[kind][2]


def test_a_dialogue_of_several_turns_is_its_prompts_and_its_answers(tokenizer):
    tokens, mask = encode_demonstration(tokenizer, DIALOGUE)
    pieces = []
    for turn in (1, 3):
        before, answer = DIALOGUE[:turn], DIALOGUE[turn].content
        prompt, response = encode_prompt(tokenizer, before), encode_response(tokenizer, before, answer)
        whole, _ = encode_demonstration(tokenizer, DIALOGUE[: turn + 1])
        np.testing.assert_array_equal(np.concatenate([prompt, response]), whole)
        assert decode_response(tokenizer, response) == answer
        assert response[-1] == tokenizer.eos_token_id
        pieces.append(response)
    np.testing.assert_array_equal(tokens[mask], np.concatenate(pieces))
    starts_with_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert (tokens[0] == tokenizer.bos_token_id) == starts_with_bos
    assert (tokens[1:] == tokenizer.bos_token_id).sum() == (2 if tokenizer.bos_token == tokenizer.eos_token else 0)


def test_transformers_marks_the_same_tokens(tokenizer):
    messages = [{"role": message.role, "content": message.content} for message in DIALOGUE]
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    mask = np.array(marked["assistant_masks"], bool)
    text = tokenizer.decode(np.array(marked["input_ids"])[mask])
    eos = tokenizer.eos_token
    # Of a whole dialogue's text, one token may lie across the border of an answer, here with the colon before it; our own
    # encoding cuts there.
    assert text.replace(" ", "").replace(":", "") == f"ItisParis.{eos}Tokyo,ofcourse.{eos}"


def test_the_exported_folder_has_all_that_transformers_needs(tokenizer, make_model, tmp_path):
    model = make_model(vocab_size=512)
    save_transformer(model, tmp_path, tokenizer)
    assert load_transformer(tmp_path).config.token_count == max(tokenizer.get_vocab().values()) + 1
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert again("It is Paris.").input_ids == tokenizer("It is Paris.").input_ids
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    check_vocabulary(again, model.config.vocab_size, "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = again("USER: What?", return_tensors="pt")
    assert theirs.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] <= prompt["input_ids"].shape[1] + 3
