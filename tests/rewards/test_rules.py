"""Programmatic rewards: what each pays for, that its cheapest trick does not pay, and messages for wrong names."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import Message, Prompt
from rlhf.errors import UserError
from rlhf.rewards.rules import resolve_rule, words


def reward(rule, response, **metadata):
    prompt = Prompt((Message("user", "Tell me."),), origin="prompts.jsonl:3", metadata=metadata)
    return resolve_rule(rule)([prompt], [response])[0]


def test_words_of_english_and_of_scripts_without_spaces():
    assert words("Don't stop—the well-known 3 dogs_ran.") == ["don't", "stop", "the", "well-known", "3", "dogs", "ran"]
    assert words("玉山是最高的山。OK") == ["玉", "山", "是", "最", "高", "的", "山", "ok"]


def test_ends_properly():
    assert reward("ends_properly", "The dog ran home.") == 1
    assert reward("ends_properly", "「玉山最高。」 ") == 1
    assert reward("ends_properly", "The dog ran") == 0
    assert reward("ends_properly", "") == 0
    assert reward("ends_properly", ".") == 0
    assert reward("ends_properly", "Yes.") == pytest.approx(1 / 3)


def test_keyword_saturates_and_stuffing_costs():
    sentence = "once upon a time there was a happy dog who ran"
    assert reward("keyword:happy", sentence) == 1
    assert reward("keyword:HAPPY", sentence + " and ran") == 1
    assert reward("keyword:happy", "happy " * 50) == pytest.approx(0.1)
    assert reward("keyword:happy", "happy") == pytest.approx(0.1)
    assert reward("keyword:happy", "unhappy dog") == 0
    assert reward("keyword:happy|joy", sentence) == 0.5
    assert reward("keyword:a happy dog", sentence) == 1
    assert reward("keyword:happy", sentence + " happy") == pytest.approx(12 / 20)


def test_length_near():
    assert reward("length_near:4", "one two three four") == 1
    assert reward("length_near:4", "one two") == 0.5
    assert reward("length_near:2", "one two three four") == 0.5
    assert reward("length_near:4", "") == 0


def test_lexical_variety_pays_neither_for_one_word_nor_for_repetition():
    varied = " ".join(f"word{number}" for number in range(20))
    assert reward("lexical_variety", varied) == 1
    assert reward("lexical_variety", "word") == pytest.approx(1 / 20)
    assert reward("lexical_variety", "word " * 40) == pytest.approx(1 / 40)
    assert reward("lexical_variety:2", "one two") == 1


def test_answer_reads_the_record_and_does_not_pay_for_lists():
    assert reward("answer", "It is Paris, of course.", answer="Paris") == 1
    assert reward("answer", "It is Parisian.", answer="Paris") == 0
    assert reward("answer:goal", "You get 42!", goal=42) == 1
    assert reward("answer", "Paris " + "London " * 83, answer="Paris") == pytest.approx(0.25)
    with pytest.raises(UserError, match=r"prompts\.jsonl:3.*\"answer\"(.|\n)*goal"):
        reward("answer", "Paris", goal="Paris")
    with pytest.raises(UserError, match="holds no word"):
        reward("answer", "Paris", answer="?!")


BUILT_IN = ["ends_properly", "keyword:happy|joy", "length_near:40", "lexical_variety", "answer"]


@given(st.lists(st.text(), max_size=4))
def test_every_built_in_gives_one_number_from_zero_to_one_for_any_text(responses):
    prompts = [Prompt((Message("user", "Tell me."),), metadata={"answer": "a"})] * len(responses)
    for rule in BUILT_IN:
        rewards = resolve_rule(rule)(prompts, responses)
        assert rewards.dtype == np.float32 and rewards.shape == (len(responses),)
        assert ((rewards >= 0) & (rewards <= 1)).all()


@pytest.fixture
def rules_of_a_user(tmp_path, monkeypatch):
    (tmp_path / "rules_of_a_user.py").write_text(
        "import numpy as np\n"
        "def length(prompts, responses): return [len(response) / 10 for response in responses]\n"
        "def too_few(prompts, responses): return np.ones(1)\n"
        "def undefined(prompts, responses): return [float('nan')] * len(responses)\n"
        "number = 3\n"
    )
    (tmp_path / "rules_with_a_hole.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("rules_of_a_user", None)


PROMPTS = [Prompt((Message("user", "Tell me."),))] * 2


@pytest.mark.usefixtures("rules_of_a_user")
def test_a_function_of_the_working_directory_keeps_its_fractions():
    rewards = resolve_rule("rules_of_a_user:length")(PROMPTS, ["abc", "a"])
    np.testing.assert_allclose(rewards, [0.3, 0.1])


@pytest.mark.usefixtures("rules_of_a_user")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rules_of_a_user:lenght", 'no function "lenght"'),
        ("rules_of_a_user:number", 'no function "number"'),
        ("rules_with_a_hole:length", "a_module_that_is_not_there"),
        ("keywrd:happy", 'did you mean "keyword"'),
        ("ends_proper", 'did you mean "ends_properly"'),
        ("nonsense", "use one of answer, ends_properly"),
        ("keyword", "needs a parameter"),
        ("keyword:", "names no word"),
        ("length_near:many", "number of words"),
        ("length_near:0", "number of words"),
        ("ends_properly:3", "takes no parameter"),
    ],
)
def test_wrong_names_say_what_to_do(name, message):
    with pytest.raises(UserError) as error:
        resolve_rule(name)
    assert message in str(error.value)


@pytest.mark.usefixtures("rules_of_a_user")
def test_what_a_function_returns_is_checked():
    with pytest.raises(UserError, match=r"shape \(1,\) for 2 responses"):
        resolve_rule("rules_of_a_user:too_few")(PROMPTS, ["abc", "a"])
    with pytest.raises(UserError, match="nan for the response 'abc'"):
        resolve_rule("rules_of_a_user:undefined")(PROMPTS, ["abc", "a"])
