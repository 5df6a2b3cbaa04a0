import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import Comparison, Demonstration, Document, Message, Prompt
from rlhf.data.sources import split_held_out
from rlhf.errors import UserError


def comparison(prompt, index):
    return Comparison((Message("user", prompt),), f"good {index}", f"bad {index}")


@given(
    prompts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(
        lambda prompts: len(set(prompts)) > 1
    ),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_parts_are_complete_and_share_no_prompt(prompts, fraction, seed):
    records = [comparison(prompt, index) for index, prompt in enumerate(prompts)]
    train, held_out = split_held_out(records, fraction, seed)
    assert sorted(train + held_out, key=lambda record: int(record.chosen.split()[1])) == records
    assert train and held_out
    assert not {record.prompt for record in train} & {record.prompt for record in held_out}
    assert split_held_out(records, fraction, seed) == (train, held_out)


def test_about_the_fraction_and_another_draw_with_another_seed():
    records = [Document(str(index)) for index in range(200)]
    train, held_out = split_held_out(records, 0.1, 0)
    assert (len(train), len(held_out)) == (180, 20)
    assert split_held_out(records, 0.1, 1)[1] != held_out
    assert split_held_out(records, 0, 0) == (records, [])


def test_a_single_document_is_cut_at_a_paragraph():
    text = "\n\n".join(f"Paragraph {index}, of some words." for index in range(20))
    (train,), (held_out,) = split_held_out([Document(text, "file:1")], 0.2, 0)
    assert train.text + "\n\n" + held_out.text == text
    assert 0.1 < len(held_out.text) / len(text) < 0.3


def test_too_little_data_is_refused():
    for records in ([Document("one line")], [comparison("same", 0), comparison("same", 1)]):
        with pytest.raises(UserError, match="held_out"):
            split_held_out(records, 0.5, 0)


def test_the_same_prompts_are_held_out_whatever_they_are_read_as():
    turns = [(Message("user", f"question {number}"),) for number in range(200)]
    answer = Message("assistant", "answer")
    as_prompts = split_held_out([Prompt(prompt) for prompt in turns], 0.2, seed=3)[1]
    as_dialogues = split_held_out([Demonstration((*prompt, answer)) for prompt in reversed(turns[:120])], 0.2, seed=3)[
        1
    ]
    held_out = {prompt.messages for prompt in as_prompts}
    assert {dialogue.messages[:-1] for dialogue in as_dialogues} == held_out & set(turns[:120])
