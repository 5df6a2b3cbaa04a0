"""Splitting records into a training and a held-out part, by their prompts.

Which side a prompt falls on depends on the prompt and the seed alone. So stages that read the same prompts as different kinds of
record, or in different files, hold out the same ones, and none trains on what another evaluates on.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TypeVar

from rlhf.data.records import Comparison, Demonstration, Document, Prompt
from rlhf.errors import UserError

AnyRecord = TypeVar("AnyRecord", Document, Demonstration, Comparison, Prompt)


def split_held_out(records: Sequence[AnyRecord], fraction: float, seed: int) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Holds out about `fraction` of the prompts for evaluation; both parts keep the order of the records.

    Records with the same prompt go to the same side, also in another data set, so that no pair of a ranked list in
    training gives away another one in evaluation (2203.02155, section 3.5). A single document is cut at a paragraph near
    its end instead.

    Args:
        records: records of one kind.
        fraction: how much to hold out; 0 holds out nothing, otherwise at least one record is held out and one kept.
        seed: of the draw.

    Returns:
        The training part and the held-out part.

    Raises:
        UserError: a part would be empty.
    """
    if fraction == 0:
        return list(records), []
    if len(records) == 1 and isinstance(records[0], Document):
        return _cut_document(records[0], fraction)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[_prompt_of(record)].append(index)
    if len(groups) < 2:
        raise UserError(
            f"data.held_out is {fraction}, but the data has only {len(groups)} different prompt(s)",
            fix="set data.held_out to 0 or use more data",
        )
    order = sorted(groups, key=lambda prompt: _draw(prompt, seed))
    below = sum(_draw(prompt, seed) < fraction for prompt in order)
    held_out = {index for prompt in order[: min(max(1, below), len(order) - 1)] for index in groups[prompt]}
    train = [record for index, record in enumerate(records) if index not in held_out]
    return train, [records[index] for index in sorted(held_out)]


def _draw(prompt: Hashable, seed: int) -> float:
    """A number in [0, 1) that looks random and is the same in every process, unlike Python's own hash."""
    digest = blake2b(repr((seed, prompt)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _prompt_of(record: Document | Demonstration | Comparison | Prompt) -> Hashable:
    match record:
        case Document():
            return record.text
        case Comparison():
            return record.prompt
        case Demonstration():
            return record.messages[:-1]
        case Prompt():
            return record.messages


def _cut_document(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    wanted = int(len(document.text) * (1 - fraction))
    cuts = (document.text.rfind(mark, 0, wanted) for mark in ("\n\n", "\n"))
    cut = next((cut for cut in cuts if cut > 0), 0)
    if cut == 0:
        raise UserError(
            f"data.held_out is {fraction}, but the only document ({document.origin}) has no paragraph to hold out",
            fix="set data.held_out to 0 or use more data",
        )
    return [replace(document, text=document.text[:cut])], [replace(document, text=document.text[cut:].lstrip("\n"))]
