"""Splitting records into a training and a held-out part, without the same prompt in both."""

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from rlhf.data.records import Comparison, Demonstration, Document, Prompt
from rlhf.errors import UserError

AnyRecord = TypeVar("AnyRecord", Document, Demonstration, Comparison, Prompt)


def split_held_out(records: Sequence[AnyRecord], fraction: float, seed: int) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Draws about `fraction` of the records for evaluation; both parts keep the order of the records.

    Records with the same prompt go to the same side, so that no pair of a ranked list in training gives away another one in
    evaluation (2203.02155, section 3.5). A single document is cut at a paragraph near its end instead.

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
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(fraction * len(records)))
    held_out: set[int] = set()
    for group in order[:-1]:
        if len(held_out) >= wanted:
            break
        held_out.update(group)
    train = [record for index, record in enumerate(records) if index not in held_out]
    return train, [records[index] for index in sorted(held_out)]


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
