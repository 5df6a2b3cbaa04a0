"""Demonstrations to imitate, imperfect on purpose: what is learnt from them is fluent, often wrong and hard to trust.

A policy that imitates them knows the forms and most facts, but rambles, asks back, complies with harm and refuses the harmless as
often as its examples do. That is what feedback has to mend.
"""

from collections.abc import Mapping, Sequence

from numpy.random import Generator

from rlhf.data.records import Demonstration, Message, Prompt
from rlhf.world.behaviours import respond
from rlhf.world.draw import pick_weighted


def write_demonstrations(
    prompts: Sequence[Prompt], shares: Mapping[str, Mapping[str, float]], generator: Generator
) -> list[Demonstration]:
    """One demonstration a prompt; `shares` has, for each kind of prompt, the weight of every behaviour to be imitated."""
    demonstrations = []
    for prompt in prompts:
        behaviour = pick_weighted(shares[prompt.metadata["kind"]], generator)
        answer = Message("assistant", respond(prompt, behaviour, generator))
        metadata = {**prompt.metadata, "behaviour": behaviour}
        demonstrations.append(Demonstration((*prompt.messages, answer), metadata=metadata))
    return demonstrations
