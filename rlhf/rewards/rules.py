"""Programmatic rewards: plain functions of prompt and response, by name or from a module of your own.

They need no reward model, so they are the quickest way to see reinforcement learning work, and the right tool where an
answer can be checked. Built in, all from 0 to 1, each made so that its cheapest trick does not pay:

    answer            contains the record's "answer" without rambling; "answer:KEY" reads another column
    ends_properly     ends with a finished sentence
    keyword:WORD      mentions WORD, at most once in ten words; "keyword:WORD|WORD" is the mean over the words
    length_near:N     has about N words
    lexical_variety   repeats few words, over at least 20 words; "lexical_variety:N" for at least N

Your own is `package.module:function`, taking the prompts and the responses (two sequences of equal length) and
returning one number for each. The working directory counts as a place to find modules.
"""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from rlhf.data.records import Prompt
from rlhf.errors import UserError

Rule = Callable[[Sequence[Prompt], Sequence[str]], Float32[np.ndarray, " responses"]]
ResponseScore = Callable[[Prompt, str], float]

# A Chinese, Japanese or Korean character counts as a word of its own, as these scripts put no spaces between words.
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+(?:['’-][^\W_{IDEOGRAPHS}]+)*")
FINISHED = re.compile(r"[.!?…。！？][\"'”’」』)）]*\s*$")

SHORTEST_SENTENCE = 3
WORDS_PER_MENTION = 10


def words(text: str) -> list[str]:
    """The words of a text in lower case; each ideograph is one."""
    return WORD.findall(text.lower())


def ends_properly() -> ResponseScore:
    """1 if the response ends with a finished sentence; less under three words, so that a full stop alone earns nothing."""

    def score(prompt: Prompt, response: str) -> float:
        finished = FINISHED.search(response) is not None
        return finished * min(1.0, len(words(response)) / SHORTEST_SENTENCE)

    return score


def keyword(parameter: str) -> ResponseScore:
    """1 if each of the words (separated by "|") is mentioned; less if mentions come thicker than one in ten words.

    Repeating the word earns nothing and, past one in ten, costs; so does a response that is little more than the word.
    """
    wanted = [words(word) for word in parameter.split("|")]
    if not all(wanted):
        raise UserError(
            f'reward rule "keyword:{parameter}" names no word', fix='write for example "keyword:happy|joy".'
        )

    def score(prompt: Prompt, response: str) -> float:
        found = words(response)
        return float(np.mean([_mention_score(found, phrase) for phrase in wanted]))

    return score


def length_near(parameter: str) -> ResponseScore:
    """1 at the wanted number of words; n/N below it and N/n above."""
    wanted = _positive_integer("length_near", parameter)

    def score(prompt: Prompt, response: str) -> float:
        length = len(words(response))
        return min(length, wanted) / max(length, wanted)

    return score


def lexical_variety(parameter: str = "20") -> ResponseScore:
    """Different words over all words, counting a response as at least so many words long.

    Without that floor one single word would be the most varied response of all.
    """
    shortest = _positive_integer("lexical_variety", parameter)

    def score(prompt: Prompt, response: str) -> float:
        found = words(response)
        return len(set(found)) / max(len(found), shortest)

    return score


def answer(parameter: str = "answer") -> ResponseScore:
    """1 if the record's answer occurs in the response as whole words; less the longer the response is beyond need.

    Free of charge are the answer's length and 20 words; beyond that the reward falls as 1/length, so that listing every
    possible answer does not pay.
    """

    def score(prompt: Prompt, response: str) -> float:
        if parameter not in prompt.metadata:
            raise UserError(
                f'reward rule "answer:{parameter}": the prompt {prompt.origin} has no column "{parameter}"',
                fix=f"add the column to the data, or name one of: {', '.join(map(str, prompt.metadata)) or '(none)'}.",
            )
        found, wanted = words(response), words(str(prompt.metadata[parameter]))
        if not wanted:
            raise UserError(
                f'reward rule "answer:{parameter}": "{parameter}" of the prompt {prompt.origin} holds no word',
                fix="remove the record, or write the answer in letters or digits.",
            )
        allowed = len(wanted) + 20
        return (_count_phrase(found, wanted) > 0) * min(1.0, allowed / max(len(found), 1))

    return score


BUILT_IN: dict[str, Callable[..., ResponseScore]] = {
    "answer": answer,
    "ends_properly": ends_properly,
    "keyword": keyword,
    "length_near": length_near,
    "lexical_variety": lexical_variety,
}
NEEDS_PARAMETER = {"keyword": "keyword:happy", "length_near": "length_near:40"}
TAKES_NO_PARAMETER = {"ends_properly"}


def resolve_rule(name: str) -> Rule:
    """Finds a programmatic reward.

    Args:
        name: a built-in, with its parameter after a colon, or `package.module:function`.

    Returns:
        A function from prompts and responses to one finite float32 each.

    Raises:
        UserError: nothing of that name, or its parameter is missing or wrong. The function itself raises it when called
            with a rule that returns anything else than one finite number a response.
    """
    head, colon, parameter = name.partition(":")
    if head in BUILT_IN:
        return _checked(name, _per_response(_built_in(head, parameter if colon else None)))
    if colon:
        return _checked(name, _imported(head, parameter))
    raise _unknown(name)


def _built_in(head: str, parameter: str | None) -> ResponseScore:
    if parameter is None and head in NEEDS_PARAMETER:
        raise UserError(f'reward rule "{head}" needs a parameter', fix=f'write for example "{NEEDS_PARAMETER[head]}".')
    if parameter is not None and head in TAKES_NO_PARAMETER:
        raise UserError(f'reward rule "{head}" takes no parameter, found "{parameter}"', fix=f'write "{head}".')
    return BUILT_IN[head]() if parameter is None else BUILT_IN[head](parameter)


def _imported(module_name: str, function_name: str) -> Rule:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _unknown(f"{module_name}:{function_name}") from error
        raise UserError(
            f'reward rule "{module_name}:{function_name}": {error}', fix="install what it imports."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f'reward rule "{module_name}:{function_name}": {module.__file__} has no function "{function_name}"',
            fix="define it, or correct the name after the colon.",
        )
    return function


def _per_response(score: ResponseScore) -> Rule:
    return lambda prompts, responses: np.array(
        [score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)], np.float32
    )


def _checked(name: str, rule: Rule) -> Rule:
    def checked(prompts: Sequence[Prompt], responses: Sequence[str]) -> Float32[np.ndarray, " responses"]:
        rewards = np.asarray(rule(prompts, responses), np.float32)
        if rewards.shape != (len(responses),):
            raise UserError(
                f'reward rule "{name}" returned shape {rewards.shape} for {len(responses)} responses',
                fix="return one number for each response, in their order.",
            )
        if not np.isfinite(rewards).all():
            first = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise UserError(
                f'reward rule "{name}" returned {rewards[first]} for the response {responses[first]!r}',
                fix="return a finite number for every response, the empty one included.",
            )
        return rewards

    return checked


def _unknown(name: str) -> UserError:
    head = name.partition(":")[0]
    near = difflib.get_close_matches(head, BUILT_IN, n=1)
    suggestion = f'did you mean "{near[0]}"? ' if near else ""
    return UserError(
        f'there is no reward rule "{name}", neither built in nor as a module that can be imported',
        fix=f'{suggestion}use one of {", ".join(BUILT_IN)}, or "package.module:function".',
    )


def _positive_integer(rule: str, parameter: str) -> int:
    if not parameter.isdecimal() or int(parameter) == 0:
        raise UserError(
            f'reward rule "{rule}:{parameter}": expected a number of words', fix=f'write for example "{rule}:40".'
        )
    return int(parameter)


def _count_phrase(found: Sequence[str], phrase: Sequence[str]) -> int:
    """How often the phrase occurs as a run of whole words."""
    length = len(phrase)
    return sum(list(found[start : start + length]) == list(phrase) for start in range(len(found) - length + 1))


def _mention_score(found: Sequence[str], phrase: Sequence[str]) -> float:
    mentions = _count_phrase(found, phrase)
    return min(1.0, len(found) / (WORDS_PER_MENTION * mentions)) if mentions else 0.0
