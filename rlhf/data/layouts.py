"""The column layouts in which data sets are published, how each is recognised, and what its records become.

A layout is recognised by its columns alone. Columns that a layout does not use become the record's metadata.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.bad_records import BadRecord, LeftOut
from rlhf.data.conversations import is_hh_text, parse_answer, parse_dialogue, parse_hh_text, parse_prompt
from rlhf.data.ranking import margin_from_columns, ranked_comparisons, true_or_false
from rlhf.data.records import Comparison, Demonstration, Document, Message, Prompt
from rlhf.data.templates import INPUT_MARK

Columns = Mapping[str, Any]
Record = Document | Demonstration | Comparison | Prompt
Kind = Literal["documents", "demonstrations", "comparisons", "prompts", "labelled answers"]

_PROMPT_COLUMNS = ("prompt", "question", "instruction")
_TURN_COLUMNS = ("conversations", "messages")
_RANKED_COLUMNS = ("output", "outputs", "completions", "responses", "answers")


@dataclass(frozen=True)
class Layout:
    """One published way of arranging a record's columns.

    Attributes:
        name: what the user writes as `layout`.
        kind: what its records are.
        columns: the columns it needs, for messages.
        fits: whether a record has these columns.
        convert: a record and its origin to what it holds; raises `BadRecord` or `LeftOut`.
    """

    name: str
    kind: Kind
    columns: str
    fits: Callable[[Columns], bool]
    convert: Callable[[Columns, str], Sequence[Record]]


def _has(record: Columns, *names: str) -> bool:
    return all(record.get(name) is not None for name in names)


def _rest(record: Columns, *used: str | None) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in used}


def _first_column(record: Columns, names: Sequence[str]) -> str | None:
    return next((name for name in names if _has(record, name)), None)


def _text_column(record: Columns, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise BadRecord(f"column {name}: expected text, found {'nothing' if value is None else type(value).__name__}")
    return value


def _document(record: Columns, origin: str) -> list[Document]:
    text = _text_column(record, "text")
    if not text.strip():
        raise LeftOut("empty text")
    return [Document(text, origin, _rest(record, "text"))]


def _demonstration(messages: Sequence[Message], origin: str, metadata: Columns) -> Demonstration:
    """Turns after the assistant's last are cut: there is nothing to learn from them."""
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise BadRecord("the dialogue has no assistant turn")
    return Demonstration(tuple(messages[: last + 1]), origin, metadata)


def _answered(prompt: tuple[Message, ...], answer: str, origin: str, metadata: Columns) -> list[Demonstration]:
    if not answer:
        raise LeftOut("empty answer")
    return [Demonstration((*prompt, Message("assistant", answer)), origin, metadata)]


def _message_list(column: str) -> Callable[[Columns, str], list[Demonstration]]:
    def convert(record: Columns, origin: str) -> list[Demonstration]:
        messages = list(parse_dialogue(record.get(column)))
        if isinstance(record.get("system"), str) and record["system"] and messages[0].role != "system":
            messages.insert(0, Message("system", record["system"]))
        return [_demonstration(messages, origin, _rest(record, column, "system"))]

    return convert


def _instruction_turns(record: Columns) -> tuple[Message, ...]:
    """Alpaca's instruction and input as one user turn, after the optional `system` and `history` columns."""
    turns: list[Message] = []
    if isinstance(record.get("system"), str) and record["system"]:
        turns.append(Message("system", record["system"]))
    for exchange in record.get("history") or []:
        if not (
            isinstance(exchange, list | tuple)
            and len(exchange) == 2
            and all(isinstance(turn, str) for turn in exchange)
        ):
            raise BadRecord("column history: expected a list of [question, answer]")
        turns += [Message("user", exchange[0]), Message("assistant", exchange[1])]
    instruction = _text_column(record, "instruction")
    given = record.get("input") or ""
    if not instruction.strip():
        raise BadRecord("column instruction is empty")
    return (*turns, Message("user", instruction + (INPUT_MARK + given if given else "")))


def _alpaca(record: Columns, origin: str) -> list[Demonstration]:
    answer = parse_answer(record.get("output"))
    metadata = _rest(record, "instruction", "input", "output", "history", "system")
    return _answered(_instruction_turns(record), answer, origin, metadata)


def _self_instruct(record: Columns, origin: str) -> list[Demonstration]:
    metadata = _rest(record, "instruction", "instances")
    instances = record.get("instances")
    if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
        raise BadRecord("column instances: expected a list of {input, output}")
    return [
        demonstration
        for instance in instances
        for demonstration in _alpaca({**metadata, "instruction": record.get("instruction"), **instance}, origin)
    ]


def _prompted(prompt_column: str, answer_column: str) -> Callable[[Columns, str], list[Demonstration]]:
    def convert(record: Columns, origin: str) -> list[Demonstration]:
        prompt, answer = parse_prompt(record.get(prompt_column)), parse_answer(record.get(answer_column))
        return _answered(prompt, answer, origin, _rest(record, prompt_column, answer_column))

    return convert


def _labelled(record: Columns, origin: str) -> list[Demonstration]:
    labelled = {**record, "label": true_or_false(record.get("label"), "label")}
    if _has(record, "completion"):
        return _prompted("prompt", "completion")(labelled, origin)
    return _message_list(_first_column(record, _TURN_COLUMNS) or "messages")(labelled, origin)


def _comparison(
    prompt: tuple[Message, ...], chosen: str, rejected: str, origin: str, rest: Columns
) -> list[Comparison]:
    """An empty rejected answer is a fair comparison; an empty preferred one and a tie teach nothing."""
    if chosen == rejected:
        raise LeftOut("tie: both answers are the same")
    if not chosen:
        raise LeftOut("the preferred answer is empty")
    margin, metadata = margin_from_columns(rest)
    return [Comparison(prompt, chosen, rejected, margin, 1.0, origin, metadata)]


def _explicit_pair(record: Columns, origin: str) -> list[Comparison]:
    column = _first_column(record, _PROMPT_COLUMNS)
    if column == "instruction":
        prompt, used = _instruction_turns(record), ("instruction", "input", "history", "system")
    else:
        prompt, used = parse_prompt(record.get(column or "prompt")), (column,)
    rest = _rest(record, *used, "chosen", "rejected")
    return _comparison(prompt, parse_answer(record.get("chosen")), parse_answer(record.get("rejected")), origin, rest)


def _safe_rlhf_pair(preferred_column: str) -> Callable[[Columns, str], list[Comparison]]:
    """Two answers by number, of which a column names the preferred one, and whether either is safe (2310.12773).

    The latter become `chosen_is_safe` and `rejected_is_safe`, for `labels.chosen_safe_column` and `labels.rejected_safe_column`.
    """
    answer_columns, safe_columns = (
        [name.format(number) for number in (0, 1)] for name in ("response_{}", "is_response_{}_safe")
    )

    def convert(record: Columns, origin: str) -> list[Comparison]:
        preferred = record.get(preferred_column)
        if str(preferred) not in ("0", "1"):
            raise BadRecord(f"column {preferred_column}: expected 0 or 1, found {preferred!r}")
        order = (int(preferred), 1 - int(preferred))
        chosen, rejected = (parse_answer(record.get(answer_columns[number])) for number in order)
        chosen_is_safe, rejected_is_safe = (
            true_or_false(record.get(safe_columns[number]), safe_columns[number]) for number in order
        )
        rest = _rest(record, "prompt", *answer_columns, *safe_columns)
        rest |= {"chosen_is_safe": chosen_is_safe, "rejected_is_safe": rejected_is_safe}
        return _comparison(parse_prompt(record.get("prompt")), chosen, rejected, origin, rest)

    return convert


def _sharegpt_pair(record: Columns, origin: str) -> list[Comparison]:
    column = _first_column(record, _TURN_COLUMNS) or "conversations"
    prompt, rest = parse_prompt(record.get(column)), _rest(record, column, "chosen", "rejected")
    return _comparison(prompt, parse_answer(record.get("chosen")), parse_answer(record.get("rejected")), origin, rest)


def _hh_pair(record: Columns, origin: str) -> list[Comparison]:
    for column in ("chosen", "rejected"):
        if not is_hh_text(record.get(column)):
            raise BadRecord(
                f"column {column} is text without a Human: turn at its start, so the prompt cannot be told from the answer"
                " (add a column prompt)"
            )
    return _dialogue_pair(parse_hh_text(record["chosen"]), parse_hh_text(record["rejected"]), record, origin)


def _conversational_pair(record: Columns, origin: str) -> list[Comparison]:
    return _dialogue_pair(parse_dialogue(record.get("chosen")), parse_dialogue(record.get("rejected")), record, origin)


def _dialogue_pair(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...], record: Columns, origin: str
) -> list[Comparison]:
    for column, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if len(dialogue) < 2 or dialogue[-1].role != "assistant":
            raise BadRecord(f"column {column}: the dialogue does not end with an answer of the assistant")
    if chosen == rejected:
        raise LeftOut("tie: both answers are the same")
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut("the two dialogues part before the last answer")
    answers = (dialogue[-1].content.strip() for dialogue in (chosen, rejected))
    return _comparison(chosen[:-1], *answers, origin, _rest(record, "chosen", "rejected"))


def _ranked(record: Columns, origin: str) -> list[Comparison]:
    answers_column = _first_column(record, _RANKED_COLUMNS) or "output"
    if _has(record, "instruction"):
        prompt, used = _instruction_turns(record), ("instruction", "input", "history", "system")
    else:
        column = _first_column(record, _PROMPT_COLUMNS) or "prompt"
        prompt, used = parse_prompt(record.get(column)), (column,)
    if not isinstance(record.get(answers_column), list):
        raise BadRecord(f"column {answers_column}: expected a list of answers, best first")
    answers = [parse_answer(answer) for answer in record[answers_column]]
    return ranked_comparisons(
        prompt, answers, record.get("scores"), origin=origin, metadata=_rest(record, *used, answers_column, "scores")
    )


def _prompt(record: Columns, origin: str) -> list[Prompt]:
    column = _first_column(record, (*_PROMPT_COLUMNS, "messages", "text"))
    if column is None:
        raise BadRecord("expected a column prompt, question, instruction, messages or text")
    if column == "instruction":
        messages, used = _instruction_turns(record), ("instruction", "input", "history", "system")
    else:
        messages, used = parse_prompt(record[column]), (column,)
    is_safety = _has(record, "is_safety") and true_or_false(record["is_safety"], "is_safety")
    return [Prompt(messages, is_safety, origin, _rest(record, *used, "is_safety"))]


_SAFE_RLHF_COLUMNS = ("response_0", "response_1", "is_response_0_safe", "is_response_1_safe")


def _is_pair(record: Columns) -> bool:
    return _has(record, "chosen", "rejected")


def _is_dialogue_pair(record: Columns) -> bool:
    """Both columns hold whole dialogues, so that a prompt column (if any) only repeats their beginning."""
    return _is_pair(record) and all(
        isinstance(record[column], list) and len(record[column]) > 1 for column in ("chosen", "rejected")
    )


def _has_prompt(record: Columns) -> bool:
    return _first_column(record, _PROMPT_COLUMNS) is not None


def _has_bare_prompt(record: Columns) -> bool:
    answered = isinstance(record.get("output"), str) or _has(record, "instances")
    return _has(record, "prompt") or _has(record, "question") or (_has(record, "instruction") and not answered)


def _has_turns(record: Columns) -> bool:
    return _first_column(record, _TURN_COLUMNS) is not None


def _has_ranked_answers(record: Columns) -> bool:
    return any(isinstance(record.get(column), list) for column in _RANKED_COLUMNS) and "labels" not in record


def _has_label(record: Columns) -> bool:
    return _has(record, "label") and (_has(record, "prompt", "completion") or _has_turns(record))


def _alone(*columns: str) -> Callable[[Columns], bool]:
    """Fits a record with these columns that is neither a pair nor a labelled answer."""
    return lambda record: _has(record, *columns) and not _has_label(record) and not _is_pair(record)


LAYOUTS: tuple[Layout, ...] = (
    Layout("text", "documents", "text", lambda record: _has(record, "text"), _document),
    Layout("messages", "demonstrations", "messages", _alone("messages"), _message_list("messages")),
    Layout("sharegpt", "demonstrations", "conversations", _alone("conversations"), _message_list("conversations")),
    Layout(
        "prompt_completion",
        "demonstrations",
        "prompt + completion",
        _alone("prompt", "completion"),
        _prompted("prompt", "completion"),
    ),
    Layout(
        "question_answer",
        "demonstrations",
        "question + answer",
        lambda record: _has(record, "question", "answer"),
        _prompted("question", "answer"),
    ),
    Layout(
        "alpaca",
        "demonstrations",
        "instruction + output (+ input)",
        lambda record: _has(record, "instruction") and isinstance(record.get("output"), str),
        _alpaca,
    ),
    Layout(
        "self_instruct",
        "demonstrations",
        "instruction + instances",
        lambda record: _has(record, "instruction", "instances"),
        _self_instruct,
    ),
    Layout(
        "prompt_pair",
        "comparisons",
        "prompt + chosen + rejected",
        lambda record: _is_pair(record) and _has_prompt(record) and not _is_dialogue_pair(record),
        _explicit_pair,
    ),
    Layout(
        "sharegpt_pair",
        "comparisons",
        "conversations or messages + chosen + rejected",
        lambda record: (
            _is_pair(record) and _has_turns(record) and not _has_prompt(record) and not _is_dialogue_pair(record)
        ),
        _sharegpt_pair,
    ),
    Layout(
        "dialogue_pair", "comparisons", "chosen + rejected (lists of turns)", _is_dialogue_pair, _conversational_pair
    ),
    Layout(
        "hh",
        "comparisons",
        "chosen + rejected (text with Human: and Assistant: turns)",
        lambda record: (
            _is_pair(record)
            and isinstance(record["chosen"], str)
            and not _has_prompt(record)
            and not _has_turns(record)
        ),
        _hh_pair,
    ),
    Layout(
        "ranked",
        "comparisons",
        "prompt or instruction + a list of answers, best first (+ scores)",
        lambda record: _has_prompt(record) and _has_ranked_answers(record),
        _ranked,
    ),
    Layout(
        "safe_rlhf_helpfulness",
        "comparisons",
        "prompt + response_0 + response_1 + is_response_0_safe + is_response_1_safe + better_response_id",
        lambda record: _has(record, "prompt", *_SAFE_RLHF_COLUMNS, "better_response_id"),
        _safe_rlhf_pair("better_response_id"),
    ),
    Layout(
        "safe_rlhf_safety",
        "comparisons",
        "the same with safer_response_id",
        lambda record: _has(record, "prompt", *_SAFE_RLHF_COLUMNS, "safer_response_id"),
        _safe_rlhf_pair("safer_response_id"),
    ),
    Layout("prompt", "prompts", "prompt, question, or instruction (+ input) alone", _has_bare_prompt, _prompt),
    Layout("kto", "labelled answers", "prompt + completion + label, or messages + label", _has_label, _labelled),
)
