import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import (
    check_vocabulary,
    load_tokenizer,
    require_same_tokenizer,
    same_tokenizer,
    train_tokenizer,
)
from rlhf.errors import UserError

TEXTS = ["the cat sat on the mat", "台灣最高的山是玉山", "玉山在台灣", "in 1999 the cat"] * 5


@given(text=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_every_text_comes_back(byte_level, text):
    assert byte_level.decode(byte_level(text, add_special_tokens=False).input_ids) == text


def test_training_is_deterministic_and_special_tokens_come_first():
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(TEXTS, 300)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert (first.pad_token_id, first.bos_token_id, first.eos_token_id) == (0, 1, 2)
    assert first("x").input_ids[0] == first.bos_token_id


def test_chinese_characters_stand_alone_and_words_keep_their_space():
    tokenizer = train_tokenizer(TEXTS * 10, 2000)
    pieces = [
        tokenizer.decode([token]) for token in tokenizer("玉山在台灣 the cat", add_special_tokens=False).input_ids
    ]
    assert pieces == ["玉", "山", "在", "台", "灣", " the", " cat"]


def test_save_and_load(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 320, extra_special_tokens=("<|im_start|>",))
    apply_template(tokenizer, "chatml")
    tokenizer.save_pretrained(tmp_path / "model")
    for path in (tmp_path, tmp_path / "model"):
        loaded = load_tokenizer(path)
        assert same_tokenizer(loaded, tokenizer)
        assert loaded.chat_template == tokenizer.chat_template
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
        assert loaded("<|im_start|>玉山").input_ids == tokenizer("<|im_start|>玉山").input_ids
    assert len(loaded("<|im_start|>").input_ids) == 2
    require_same_tokenizer(tmp_path, tmp_path / "model", "helpfulness")


def test_different_tokenizers_are_refused(tmp_path):
    first, second = (
        train_tokenizer(TEXTS, 300),
        train_tokenizer(["an entirely different text, of other words"] * 5, 300),
    )
    assert same_tokenizer(first, first)
    assert not same_tokenizer(first, second)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match=r"helpfulness: .* different tokenizers"):
        require_same_tokenizer(tmp_path / "a", tmp_path / "b", "helpfulness")


def test_vocabulary_against_the_model(byte_level):
    check_vocabulary(byte_level, len(byte_level), "model")
    with pytest.raises(UserError, match=r"model\.path: the tokenizer has"):
        check_vocabulary(byte_level, len(byte_level) - 1, "model.path")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds none; expected tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match="256 bytes"):
        train_tokenizer(TEXTS, 258)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path / "endless")


def test_a_missing_pad_token_is_taken_from_the_vocabulary(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|pad|>"


def test_published_tokenizers(shared, gpt2, tmp_path):
    stories = load_tokenizer(shared / "models/stories260k")
    assert (stories.pad_token, stories.eos_token, len(stories)) == ("<unk>", "</s>", 512)
    smollm = load_tokenizer(shared / "data/tokenizers/smollm2")
    assert smollm.pad_token_id != smollm.eos_token_id
    assert len(smollm) == 49152
    assert gpt2("Hello world").input_ids == [15496, 995]
    assert gpt2.pad_token == gpt2.eos_token == "<|endoftext|>"
    gpt2.save_pretrained(tmp_path)
    assert same_tokenizer(load_tokenizer(tmp_path), gpt2)
