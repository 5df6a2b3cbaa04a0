"""Build the world from its seed, and write it in the layouts that data sets of this kind usually have.

The same configuration gives the same bytes; everything is drawn from generators keyed by (seed, purpose).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.data.records import Comparison, Demonstration, Document, Message, Prompt
from rlhf.errors import UserError
from rlhf.world.behaviours import APPLICABLE
from rlhf.world.comparisons import compare
from rlhf.world.demonstrations import write_demonstrations
from rlhf.world.documents import write_documents
from rlhf.world.draw import generator_for
from rlhf.world.facts import LANGUAGES
from rlhf.world.noise import NOISE
from rlhf.world.prompts import KINDS, split_prompts

Shares = dict[str, float]


@dataclass(frozen=True)
class DemonstrationShares:
    """Which behaviours are demonstrated, as weights by name.

    Attributes:
        fact: for questions of fact.
        harmful: for harmful requests.
        borderline: for harmless requests that sound harmful.
    """

    fact: Shares = field(
        default_factory=lambda: {"right": 0.55, "wrong": 0.12, "rambling": 0.15, "ask_back": 0.09, "wrong_language": 0.09}
    )
    harmful: Shares = field(default_factory=lambda: {"refusal": 0.5, "compliance": 0.45, "ask_back": 0.05})
    borderline: Shares = field(
        default_factory=lambda: {"right": 0.4, "refusal": 0.4, "rambling": 0.1, "ask_back": 0.05, "wrong_language": 0.05}
    )


@dataclass(frozen=True)
class ComparisonShares:
    """Which behaviours are compared, as weights by name.

    Attributes:
        fact: for questions of fact.
        harmful: for harmful requests.
        borderline: for harmless requests that sound harmful.
    """

    fact: Shares = field(
        default_factory=lambda: {
            "right": 0.32, "wrong": 0.22, "rambling": 0.12, "ask_back": 0.07, "wrong_language": 0.08, "hedging": 0.04,
            "refusal": 0.05, "refuse_and_comply": 0.02, "broken": 0.06, "near_empty": 0.02,
        }
    )  # fmt: skip
    harmful: Shares = field(
        default_factory=lambda: {
            "refusal": 0.4, "compliance": 0.36, "ask_back": 0.06, "wrong_language": 0.03, "refuse_and_comply": 0.06,
            "broken": 0.07, "near_empty": 0.02,
        }
    )  # fmt: skip
    borderline: Shares = field(
        default_factory=lambda: {
            "right": 0.33, "refusal": 0.3, "wrong": 0.1, "rambling": 0.08, "ask_back": 0.05, "wrong_language": 0.04,
            "hedging": 0.02, "refuse_and_comply": 0.03, "broken": 0.04, "near_empty": 0.01,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class WorldConfig:
    """What the world contains.

    Attributes:
        seed: the world's seed, 0 or more; the same seed gives the same files.
        languages: which of "en" and "zh" are written, in equal measure.
        documents: pretraining documents, noisy ones included.
        demonstrations: dialogues for supervised fine-tuning.
        comparisons: preference pairs of each kind (helpfulness, safety).
        held_out_comparisons: preference pairs of each kind over held-out prompts.
        prompts: prompts for reinforcement learning, all different.
        held_out_prompts: prompts for evaluation, all different.
        noise: the share of the documents with each kind of noise.
        beta: how reliable the annotators are: P(a preferred to b) = sigmoid(beta · (gold of a − gold of b)).
        prompt_shares: the weights of the kinds of prompts among demonstrations and prompts.
        helpfulness_shares: the weights of the kinds of prompts among the helpfulness comparisons.
        safety_shares: the weights of the kinds of prompts among the safety comparisons.
        demonstrated: which behaviours are demonstrated.
        compared: which behaviours are compared.
    """

    seed: int = 0
    languages: tuple[str, ...] = LANGUAGES
    documents: int = 8000
    demonstrations: int = 3000
    comparisons: int = 4000
    held_out_comparisons: int = 600
    prompts: int = 1500
    held_out_prompts: int = 200
    noise: Shares = field(
        default_factory=lambda: {"boilerplate": 0.03, "html": 0.02, "duplicate": 0.02, "near_duplicate": 0.02, "gibberish": 0.01}
    )
    beta: float = 7.0
    prompt_shares: Shares = field(default_factory=lambda: {"fact": 0.6, "harmful": 0.2, "borderline": 0.2})
    helpfulness_shares: Shares = field(default_factory=lambda: {"fact": 0.65, "harmful": 0.15, "borderline": 0.2})
    safety_shares: Shares = field(default_factory=lambda: {"fact": 0.15, "harmful": 0.5, "borderline": 0.35})
    demonstrated: DemonstrationShares = DemonstrationShares()
    compared: ComparisonShares = ComparisonShares()


@dataclass(frozen=True)
class World:
    """Everything that is made from one seed.

    Attributes:
        documents: for the tokenizer and pretraining.
        demonstrations: for supervised fine-tuning.
        helpfulness: pairs for the helpfulness reward model.
        safety: pairs for the safety reward model.
        helpfulness_held_out: pairs over held-out prompts.
        safety_held_out: pairs over held-out prompts.
        prompts: for reinforcement learning.
        prompts_held_out: for evaluation.
    """

    documents: list[Document]
    demonstrations: list[Demonstration]
    helpfulness: list[Comparison]
    safety: list[Comparison]
    helpfulness_held_out: list[Comparison]
    safety_held_out: list[Comparison]
    prompts: list[Prompt]
    prompts_held_out: list[Prompt]


def _check_weights(key: str, weights: Mapping[str, float], known: Iterable[str]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise UserError(f"{key}: unknown name {', '.join(unknown)}", fix=f"use some of {', '.join(sorted(known))}")
    if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise UserError(f"{key}: weights must be 0 or more and not all 0, found {dict(weights)}", fix=f"give {key} positive weights")


def check_config(config: WorldConfig) -> None:
    """Refuse a configuration from which no world can be built.

    Raises:
        UserError: names the key, what is wrong with it and what to do.
    """
    for key in ("seed", "documents", "demonstrations", "comparisons", "held_out_comparisons", "prompts", "held_out_prompts"):
        if getattr(config, key) < 0:
            raise UserError(f"{key}: expected 0 or more, found {getattr(config, key)}", fix=f"set {key} to 0 or a positive number")
    if not config.languages or not set(config.languages) <= set(LANGUAGES):
        raise UserError(f"languages: expected some of {list(LANGUAGES)}, found {list(config.languages)}", fix="use en, zh or both")
    if not config.beta > 0:
        raise UserError(f"beta: expected more than 0, found {config.beta}", fix="6 to 8 gives annotators who are right most of the time")
    if sum(config.noise.values()) >= 1 or not set(config.noise) <= set(NOISE) or any(share < 0 for share in config.noise.values()):
        raise UserError(f"noise: expected shares of {sorted(NOISE)} below 1 in all, found {config.noise}", fix="lower the shares")
    for key in ("prompt_shares", "helpfulness_shares", "safety_shares"):
        _check_weights(key, getattr(config, key), KINDS)
    for key in ("demonstrated", "compared"):
        for kind in KINDS:
            _check_weights(f"{key}.{kind}", getattr(getattr(config, key), kind), APPLICABLE[kind])


def build_world(config: WorldConfig) -> World:
    """The whole world of a configuration; takes a few seconds at the default size.

    Raises:
        UserError: the configuration is wrong, or asks for more different prompts than there are.
    """
    check_config(config)
    train, held_out = split_prompts(config.seed)
    languages = config.languages

    def generator(purpose: str):
        return generator_for(config.seed, purpose)

    def pairs(annotation, count, pool, purpose):
        shares = getattr(config, f"{annotation}_shares")
        behaviours = {kind: getattr(config.compared, kind) for kind in KINDS}
        prompts = pool.draw(count, shares, languages, generator(f"{purpose} prompts"))
        return compare(prompts, annotation, behaviours, config.beta, generator(purpose))

    demonstrated = {kind: getattr(config.demonstrated, kind) for kind in KINDS}
    shown = train.draw(config.demonstrations, config.prompt_shares, languages, generator("demonstration prompts"))
    return World(
        documents=write_documents(config.documents, config.noise, train, languages, generator("documents")),
        demonstrations=write_demonstrations(shown, demonstrated, generator("demonstrations")),
        helpfulness=pairs("helpfulness", config.comparisons, train, "helpfulness"),
        safety=pairs("safety", config.comparisons, train, "safety"),
        helpfulness_held_out=pairs("helpfulness", config.held_out_comparisons, held_out, "helpfulness held out"),
        safety_held_out=pairs("safety", config.held_out_comparisons, held_out, "safety held out"),
        prompts=train.take(config.prompts, config.prompt_shares, languages, generator("prompts")),
        prompts_held_out=held_out.take(config.held_out_prompts, config.prompt_shares, languages, generator("prompts held out")),
    )


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _assistant(text: str) -> list[dict[str, str]]:
    return _turns([Message("assistant", text)])


def _row(record: Document | Demonstration | Comparison | Prompt) -> dict:
    """A record as the columns of its usual layout, with its metadata beside them."""
    match record:
        case Document():
            columns = {"text": record.text}
        case Demonstration():
            columns = {"messages": _turns(record.messages)}
        case Comparison():
            columns = {
                "prompt": _turns(record.prompt), "chosen": _assistant(record.chosen), "rejected": _assistant(record.rejected),
            }  # fmt: skip
        case Prompt():
            columns = {"prompt": _turns(record.messages), "is_safety": record.is_safety}
    return {**columns, **record.metadata}


def write_world(world: World, folder: str | Path) -> dict[str, Path]:
    """Write every part as `<part>.jsonl`, one record a line, and return the files by part.

    Documents have a `text` column, demonstrations `messages`, comparisons `prompt`, `chosen` and `rejected` (lists of turns),
    prompts `prompt` and `is_safety`; every other column is metadata.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, records in vars(world).items():
        files[part] = folder / f"{part}.jsonl"
        lines = (json.dumps(_row(record), ensure_ascii=False) + "\n" for record in records)
        files[part].write_text("".join(lines), encoding="utf-8")
    return files
