"""Answers of several policies to one prompt, beside each other, as HTML."""

from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from rlhf.report.artefacts import read_measure
from rlhf.report.names import LANGUAGES, best_of, in_order, policy_name
from rlhf.report.tables import number

SCORES = {
    "gold_score": "gold",
    "gold_helpfulness": "helpful",
    "gold_safety": "safe",
    "helpfulness_score": "helpfulness model",
    "safety_score": "safety model",
}
MOST_POLICIES = 4

Sample = dict[str, Any]


def choose_prompts(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """Samples of `count` prompts, all kinds and languages in turn, grouped by prompt.

    Args:
        samples: records with "prompt", "kind", "language", "policy".
        count: at most so many prompts.

    Returns:
        One list a prompt, with the samples of all policies.
    """
    prompts: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        place = (str(sample.get("kind", "")), str(sample.get("language", "")), sample["prompt"])
        prompts.setdefault(place, []).append(sample)
    groups: dict[tuple[str, str], list[list[Sample]]] = {}
    for (kind, language, _), answers in prompts.items():
        groups.setdefault((kind, language), []).append(answers)
    turns = zip_longest(*(groups[group] for group in sorted(groups)))
    return [answers for turn in turns for answers in turn if answers is not None][:count]


def shown_policies(samples: Sequence[Sample]) -> list[str]:
    """At most four policies: the ends of the road, and the best-of-n with the largest n that was sampled."""
    found = in_order({sample["policy"] for sample in samples})
    best = [policy for policy in found if best_of(policy) is not None]
    kept = [policy for policy in found if policy not in best[:-1]]
    return kept[:1] + kept[1:][-(MOST_POLICIES - 1) :]


def samples_html(samples: Sequence[Sample], count: int = 12) -> str:
    """Prompts with the answers of the policies beside each other, marked by their gold score."""
    policies = shown_policies(samples)
    gold = [sample["gold_score"] for sample in samples if read_measure(sample.get("gold_score")) is not None]
    low, high = min([0.0, *gold]), max([1.0, *gold])
    blocks = []
    for answers in choose_prompts(samples, count):
        by_policy = {sample["policy"]: sample for sample in answers}
        first = answers[0]
        tags = [str(first[key]) for key in ("kind", "language") if first.get(key)]
        badges = "".join(
            f'<span class="badge">{escape(LANGUAGES.get(tag, tag).replace("_", " "))}</span>' for tag in tags
        )
        cells = "".join(_answer(policy, by_policy.get(policy), low, high) for policy in policies)
        blocks.append(
            f'<section class="sample"><h3{_lang(first)}>{escape(_prompt_text(first["prompt"]))} {badges}</h3>'
            f'<div class="answers" style="--columns:{len(policies)}">{cells}</div></section>'
        )
    return "".join(blocks)


def _prompt_text(prompt: Any) -> str:
    """A prompt as one text; a conversation is written turn by turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)


def _answer(policy: str, sample: Sample | None, low: float, high: float) -> str:
    """One policy's answer with its scores; its edge goes from orange (bad) to blue (good)."""
    name = f"<h4>{escape(policy_name(policy))}</h4>"
    if sample is None:
        return f'<div class="answer">{name}<p class="none">not sampled</p></div>'
    gold = read_measure(sample.get("gold_score"))
    style = "" if gold is None else f' style="--good:{100 * (gold.value - low) / (high - low):.0f}%"'
    scores = " · ".join(
        f"{label} {number(measure.value)}".replace(" ", "\N{NO-BREAK SPACE}")
        for key, label in SCORES.items()
        if (measure := read_measure(sample.get(key)))
    )
    response = str(sample.get("response", "")).strip()
    text = escape(response) if response else '<span class="none">(empty)</span>'
    marked = " marked" if gold is not None else ""
    return f'<div class="answer{marked}"{style}>{name}<p{_lang(sample)}>{text}</p><small>{escape(scores)}</small></div>'


def _lang(sample: Sample) -> str:
    """The language attribute, by which a browser chooses the shapes of Chinese characters."""
    language = {"zh": "zh-Hant"}.get(str(sample.get("language")), sample.get("language"))
    return f' lang="{escape(str(language))}"' if language else ""
