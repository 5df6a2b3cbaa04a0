import pytest

from rlhf.data.templates import INPUT_MARK, TEMPLATES, apply_template
from rlhf.errors import UserError

QUESTION = {"role": "user", "content": "Capital?"}
ANSWER = {"role": "assistant", "content": "Paris."}
MORE = [QUESTION, ANSWER, {"role": "user", "content": "Sure?"}]


@pytest.fixture
def render(sentence_piece):
    def rendered(name, messages, prompt=False):
        apply_template(sentence_piece, name)
        return sentence_piece.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    return rendered


def test_user_ai(render):
    assert render("user_ai", [QUESTION], prompt=True) == "<s>USER: Capital? AI:"
    assert render("user_ai", [QUESTION, ANSWER]) == "<s>USER: Capital? AI: Paris.</s>"
    system = {"role": "system", "content": "Be brief."}
    assert (
        render("user_ai", [system, *MORE], prompt=True) == "<s>Be brief. USER: Capital? AI: Paris.</s>USER: Sure? AI:"
    )


def test_hh(render):
    expected = "<s>\n\nHuman: Capital?\n\nAssistant: Paris.</s>\n\nHuman: Sure?\n\nAssistant:"
    assert render("hh", MORE, prompt=True) == expected


def test_alpaca_in_both_published_forms(render):
    assert render("alpaca", [QUESTION], prompt=True) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nCapital?\n\n### Response:"
    )
    with_input = [{"role": "user", "content": f"Fix.{INPUT_MARK}teh"}, {"role": "assistant", "content": "the"}]
    assert render("alpaca", with_input) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nFix.\n\n### Input:\nteh\n\n### Response:the</s>"
    )


def test_other_templates_join_instruction_and_input_by_a_blank_line(render):
    message = {"role": "user", "content": f"Fix.{INPUT_MARK}teh"}
    for name in ("user_ai", "hh", "chatml", "plain"):
        text = render(name, [message])
        assert "Fix.\n\nteh" in text
        assert "###" not in text


def test_chatml(render):
    expected = (
        "<s><|im_start|>user\nCapital?</s>\n<|im_start|>assistant\nParis.</s>\n"
        "<|im_start|>user\nSure?</s>\n<|im_start|>assistant\n"
    )
    assert render("chatml", MORE, prompt=True) == expected


def test_plain_continues_the_prompt(render):
    assert render("plain", [QUESTION, ANSWER]) == "<s>Capital? Paris.</s>"
    assert render("plain", [{"role": "user", "content": "Q:\n"}, ANSWER]) == "<s>Q:\nParis.</s>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_how_the_dialogue_begins_and_the_marks_cover_the_answer(render, sentence_piece, name):
    text = render(name, [QUESTION, ANSWER])
    assert text.startswith(render(name, [QUESTION], prompt=True))
    marked = sentence_piece.apply_chat_template([QUESTION, ANSWER], return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    assert sentence_piece.decode(answer).strip() == "Paris.</s>"


def test_names(sentence_piece):
    with pytest.raises(UserError, match=r"'usr'.*\n.*user_ai"):
        apply_template(sentence_piece, "usr")
    sentence_piece.chat_template = "{{ messages }}"
    apply_template(sentence_piece, "tokenizer")
    assert sentence_piece.chat_template == "{{ messages }}"
    sentence_piece.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        apply_template(sentence_piece, "tokenizer")
