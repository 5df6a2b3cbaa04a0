"""Tables of the report as HTML: policies, reward models, time."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rlhf.report.artefacts import Measure, read_measure
from rlhf.report.names import LANGUAGES, MEASURES, in_order, measures_of, policy_name


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML already; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float) -> str:
    """Two decimals, fewer for large numbers, with a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return text.replace("-", "−")


def measure_cell(measure: Measure | None) -> str:
    """A value with its interval below it; a dash for what was not measured."""
    if measure is None:
        return '<span class="none">–</span>'
    if not measure.has_interval:
        return f"<b>{number(measure.value)}</b>"
    return f"<b>{number(measure.value)}</b><small>{number(measure.low)} to {number(measure.high)}</small>"


def policy_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a policy, one column a measure."""
    measures = measures_of(policies)
    headings = [f'<span title="{escape(MEASURES[m][1])}">{escape(MEASURES[m][0])}</span>' for m in measures]
    rows = (
        [escape(policy_name(policy)), *(measure_cell(read_measure(policies[policy].get(m))) for m in measures)]
        for policy in in_order(policies)
    )
    return table(["policy", *headings], rows)


def language_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Gold score of each policy in each language; empty if nothing was measured by language."""
    by_language = {policy: entry["by_language"] for policy, entry in policies.items() if entry.get("by_language")}
    languages = sorted({language for entry in by_language.values() for language in entry})
    measures = measures_of({f"{p}/{k}": part for p, entry in by_language.items() for k, part in entry.items()})[:3]
    if not measures:
        return ""
    headings = [
        f"{escape(LANGUAGES.get(language, language))}<br>{escape(MEASURES[m][0])}"
        for m in measures
        for language in languages
    ]
    rows = (
        [
            escape(policy_name(policy)),
            *(measure_cell(read_measure(by_language[policy].get(k, {}).get(m))) for m in measures for k in languages),
        ]
        for policy in in_order(by_language)
    )
    return table(["policy", *headings], rows)


def reward_model_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against what is attainable, and calibration error."""
    rows = (
        [
            escape(name),
            measure_cell(read_measure(entry.get("accuracy"))),
            measure_cell(read_measure(entry.get("expected_accuracy"))),
            measure_cell(read_measure(entry.get("accuracy_limit"))),
            measure_cell(read_measure(entry.get("ece"))),
        ]
        for name, entry in models.items()
    )
    return table(
        ["reward model", "accuracy ↑", "accuracy on fresh labels ↑", "attainable accuracy", "calibration error ↓"], rows
    )


def cross_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of each reward model on the comparisons of each; empty if it was not measured."""
    crossed = {name: entry["cross"] for name, entry in models.items() if entry.get("cross")}
    if not crossed:
        return ""
    kinds = list(dict.fromkeys(kind for cross in crossed.values() for kind in cross))
    rows = (
        [f"{escape(name)} model", *(measure_cell(read_measure(cross.get(kind))) for kind in kinds)]
        for name, cross in crossed.items()
    )
    return table(["accuracy on", *(f"{escape(kind)} comparisons" for kind in kinds)], rows)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def time_table(seconds: Mapping[str, float]) -> str:
    """Time of each stage with a bar for its share."""
    longest = max(seconds.values(), default=0) or 1
    rows = (
        [
            escape(stage.replace("_", " ")),
            duration(value),
            f'<span class="bar" style="width:{100 * value / longest:.1f}%"></span>',
        ]
        for stage, value in seconds.items()
    )
    return table(["stage", "time", ""], rows)
