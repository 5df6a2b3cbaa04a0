"""Dialogues out of the forms in which data sets write them: message lists, ShareGPT turns, Anthropic HH text, plain strings.

All functions raise `BadRecord` with the reason when a value is not such a dialogue.
"""

import json
import re
from typing import Any

from rlhf.data.bad_records import BadRecord
from rlhf.data.records import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Speakers' names in the known data sets. A ShareGPT `function_call` is the assistant speaking, an `observation` the tool."""

_HH_MARK = re.compile(r"\n\n(Human|Assistant):")


def parse_dialogue(value: Any) -> tuple[Message, ...]:
    """A list of turns, `{role, content}` or `{from, value}`, that begins with the user (after any system turn)."""
    if not isinstance(value, list) or not value:
        raise BadRecord(f"expected a list of turns, found {_describe(value)}")
    messages = tuple(parse_turn(turn, index) for index, turn in enumerate(value))
    spoken = [message.role for message in messages if message.role != "system"]
    if not spoken or spoken[0] != "user":
        raise BadRecord(f"the dialogue begins with {spoken[0] if spoken else 'nobody'}, expected the user")
    return messages


def parse_turn(turn: Any, index: int = 0) -> Message:
    """One turn, `{role, content}` or `{from, value}`."""
    if not isinstance(turn, dict):
        raise BadRecord(f"turn {index}: expected an object, found {_describe(turn)}")
    for speaker_key, text_key in (("role", "content"), ("from", "value")):
        if speaker_key in turn and text_key in turn:
            break
    else:
        raise BadRecord(f"turn {index}: expected role and content, or from and value; found {sorted(turn)}")
    speaker = turn[speaker_key]
    if not isinstance(speaker, str) or speaker.lower() not in ROLES:
        raise BadRecord(f"turn {index}: unknown {speaker_key} {speaker!r}; known are {', '.join(ROLES)}")
    return Message(ROLES[speaker.lower()], _turn_text(turn, text_key, index))


def _turn_text(turn: dict[str, Any], text_key: str, index: int) -> str:
    content = turn[text_key]
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    if content is None and turn.get("tool_calls"):
        return json.dumps(turn["tool_calls"], ensure_ascii=False)
    raise BadRecord(f"turn {index}: expected text as {text_key}, found {_describe(content)}")


def is_hh_text(value: Any) -> bool:
    """True for a dialogue in Anthropic's form, which opens with a Human turn (2204.05862)."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def parse_hh_text(text: str) -> tuple[Message, ...]:
    """A dialogue written as `\\n\\nHuman: … \\n\\nAssistant: …`; two turns in a row of one speaker become one turn of two lines.

    A last `\\n\\nAssistant:` with nothing after it is kept as an empty answer.
    """
    pieces = _HH_MARK.split("\n\n" + text.lstrip())
    messages: list[Message] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        content = content.strip()
        if messages and messages[-1].role == role:
            earlier = messages.pop().content
            content = f"{earlier}\n{content}".strip()
        messages.append(Message(role, content))
    return tuple(messages)


def parse_prompt(value: Any) -> tuple[Message, ...]:
    """The turns before an answer: a plain string (one user turn), HH text, or a list of turns; they end with the user or a tool."""
    if is_hh_text(value):
        messages = parse_hh_text(value)
        if messages[-1] == Message("assistant", ""):
            messages = messages[:-1]
    elif isinstance(value, str):
        if not value.strip():
            raise BadRecord("the prompt is empty")
        messages = (Message("user", value),)
    else:
        messages = parse_dialogue(value)
    if messages[-1].role not in ("user", "tool"):
        raise BadRecord(f"the prompt ends with the {messages[-1].role}, expected the user")
    return messages


def parse_answer(value: Any) -> str:
    """One answer: a string, one assistant turn, or a list with one assistant turn. Space around it is no part of it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        turn = parse_turn(value)
        if turn.role != "assistant":
            raise BadRecord(f"the answer is spoken by the {turn.role}, expected the assistant")
        value = turn.content
    if not isinstance(value, str):
        raise BadRecord(f"expected an answer as text or as one assistant turn, found {_describe(value)}")
    return value.strip()


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else type(value).__name__
