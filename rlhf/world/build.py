"""Build the world from its seed, and write it in the layouts that data sets of this kind usually have.

The same configuration gives the same bytes; everything is drawn from generators keyed by (seed, purpose).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from numpy.random import Generator

from rlhf.data.records import Comparison, Demonstration, Document, Message, Prompt
from rlhf.world.comparisons import Annotation, Annotator, Ranking, compare, rank
from rlhf.world.config import Shares, WorldConfig, check_config
from rlhf.world.demonstrations import write_demonstrations
from rlhf.world.documents import write_documents
from rlhf.world.draw import generator_for
from rlhf.world.prompts import KINDS, PromptPool, split_prompts


@dataclass(frozen=True)
class World:
    """Everything that is made from one seed.

    Attributes:
        documents: for the tokenizer and pretraining.
        demonstrations: for supervised fine-tuning.
        helpfulness: ranked answers for the helpfulness reward model.
        safety: ranked answers for the safety reward model.
        helpfulness_held_out: pairs over held-out prompts.
        safety_held_out: pairs over held-out prompts.
        prompts: for reinforcement learning.
        prompts_held_out: for evaluation.
    """

    documents: list[Document]
    demonstrations: list[Demonstration]
    helpfulness: list[Ranking]
    safety: list[Ranking]
    helpfulness_held_out: list[Comparison]
    safety_held_out: list[Comparison]
    prompts: list[Prompt]
    prompts_held_out: list[Prompt]


def build_world(config: WorldConfig) -> World:
    """The whole world of a configuration; takes a few seconds at the default size.

    Raises:
        UserError: the configuration is wrong, or asks for more different prompts than there are.
    """
    check_config(config)
    train, held_out = split_prompts(config.seed)
    languages = config.languages
    demonstrated = {kind: getattr(config.demonstrated, kind) for kind in KINDS}

    def generator(purpose: str) -> Generator:
        return generator_for(config.seed, purpose)

    shown = train.draw(config.demonstrations, config.prompt_shares, languages, generator("demonstration prompts"))
    return World(
        documents=write_documents(config.documents, config.noise, train, languages, generator("documents")),
        demonstrations=write_demonstrations(shown, demonstrated, generator("demonstrations")),
        helpfulness=_rank(config, "helpfulness", train),
        safety=_rank(config, "safety", train),
        helpfulness_held_out=_compare(config, "helpfulness", held_out),
        safety_held_out=_compare(config, "safety", held_out),
        prompts=train.take(config.prompts, config.prompt_shares, languages, generator("prompts")),
        prompts_held_out=held_out.take(
            config.held_out_prompts, config.prompt_shares, languages, generator("prompts held out")
        ),
    )


def _rank(config: WorldConfig, annotation: Annotation, pool: PromptPool) -> list[Ranking]:
    """The training preferences of one kind."""
    rankings = config.helpfulness_rankings if annotation == "helpfulness" else config.safety_rankings
    prompts = pool.draw(
        rankings,
        _prompt_shares(config, annotation),
        config.languages,
        generator_for(config.seed, f"{annotation} prompts, train"),
    )
    return rank(
        prompts, _annotator(config, annotation), config.answers, generator_for(config.seed, f"{annotation}, train")
    )


def _compare(config: WorldConfig, annotation: Annotation, pool: PromptPool) -> list[Comparison]:
    """The held-out preferences of one kind: pairs, each with the probability of its label."""
    prompts = pool.draw(
        config.held_out_comparisons,
        _prompt_shares(config, annotation),
        config.languages,
        generator_for(config.seed, f"{annotation} prompts, held out"),
    )
    return compare(prompts, _annotator(config, annotation), generator_for(config.seed, f"{annotation}, held out"))


def _prompt_shares(config: WorldConfig, annotation: Annotation) -> Shares:
    return config.helpfulness_shares if annotation == "helpfulness" else config.safety_shares


def _annotator(config: WorldConfig, annotation: Annotation) -> Annotator:
    beta = config.helpfulness_beta if annotation == "helpfulness" else config.safety_beta
    return Annotator(annotation, beta, config.smallest_gap, {kind: getattr(config.compared, kind) for kind in KINDS})


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _assistant(text: str) -> list[dict[str, str]]:
    return _turns([Message("assistant", text)])


def _row(record: Document | Demonstration | Ranking | Comparison | Prompt) -> dict:
    """A record as the columns of its usual layout, with its metadata beside them."""
    match record:
        case Document():
            columns = {"text": record.text}
        case Demonstration():
            columns = {"messages": _turns(record.messages)}
        case Ranking():
            columns = {
                "prompt": _turns(record.prompt),
                "completions": [_assistant(answer) for answer in record.answers],
            }
        case Comparison():
            columns = {
                "prompt": _turns(record.prompt), "chosen": _assistant(record.chosen), "rejected": _assistant(record.rejected),
            }  # fmt: skip
        case Prompt():
            columns = {"prompt": _turns(record.messages), "is_safety": record.is_safety}
    return {**columns, **record.metadata}


def world_files(folder: str | Path) -> dict[str, Path]:
    """The file of each part of a world."""
    return {part.name: Path(folder) / f"{part.name}.jsonl" for part in fields(World)}


def write_world(world: World, folder: str | Path) -> dict[str, Path]:
    """Write every part as `<part>.jsonl`, one record a line, and return the files by part; see `world_files`.

    Documents have a `text` column, demonstrations `messages`, rankings `prompt` and `completions` (the best first), comparisons
    `prompt`, `chosen` and `rejected` (lists of turns), prompts `prompt` and `is_safety`; every other column is metadata.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = world_files(folder)
    for part, records in vars(world).items():
        lines = (json.dumps(_row(record), ensure_ascii=False) + "\n" for record in records)
        files[part].write_text("".join(lines), encoding="utf-8")
    return files
