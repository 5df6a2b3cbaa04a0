"""What stages begin with: tokenizer and chat template, models and batches on the mesh, and the checks between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import lcm

import jax
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import PromptBatch
from rlhf.data.held_out import split_held_out
from rlhf.data.lengths import TooLongPrompt, encode_prompts
from rlhf.data.packing import pad_prompts, round_up
from rlhf.data.records import Prompt
from rlhf.data.sources import DataConfig
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import check_vocabulary, load_tokenizer, require_same_tokenizer
from rlhf.data.truncation import truncate_prompts
from rlhf.errors import UserError
from rlhf.models.bases import Bases
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.ensemble import MEAN, EnsembleConfig, EnsembleScorer, member_folders
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import tokenizer_folder
from rlhf.models.source import ModelSource, load_reward_model
from rlhf.parallel.host_arrays import BatchLayout
from rlhf.parallel.rules import batch_sharding, keys_of, parts_of, shard_state
from rlhf.tracking.console import say

PROMPT_LENGTH_MULTIPLE = 8


def stage_tokenizer(folder: str | None, template: str, *, key: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder and gives it the chat template.

    Args:
        folder: a tokenizer's or a model's folder.
        template: name of the chat template.
        key: the config key that names the folder, for the message.
    """
    if folder is None:
        raise UserError(f"{key} is not set", fix=f"set {key} to the folder of a model or a tokenizer.")
    tokenizer = load_tokenizer(folder)
    apply_template(tokenizer, template)
    return tokenizer


def model_tokenizer(init_from: str | None, template: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that came with a model, and checks that the model has an embedding for each of its tokens."""
    tokenizer = stage_tokenizer(init_from and str(tokenizer_folder(init_from)), template, key="model.init_from")
    check_vocabulary(tokenizer, config.vocab_size, f"model.init_from {init_from}")
    return tokenizer


def load_reward_models(
    folders: Mapping[str, str | list[str] | None],
    policy_folder: str,
    compute: ComputeConfig,
    mesh: jax.sharding.Mesh,
    bases: Bases | None = None,
    ensemble: EnsembleConfig = MEAN,
) -> dict[str, SequenceScorer | EnsembleScorer]:
    """Loads the reward models that are named, and lays them out over the mesh.

    Args:
        folders: config key to folder, or several folders (`member_folders`), or to None for a model that is not there.
        policy_folder: the policy whose responses they read.
        compute: dtypes to run them with.
        mesh: where to.
        bases: of the job, where other models stand on the same bases.
        ensemble: how several folders of one key become one score.

    Raises:
        UserError: a folder holds no reward model, or one that reads other tokens than the policy writes.
    """
    models = {}
    for key, folder in folders.items():
        if folder is not None:
            for member in member_folders(folder):
                require_same_tokenizer(tokenizer_folder(policy_folder), tokenizer_folder(member), key)
            models[key] = place_model(load_reward_model(folder, compute, key, bases, ensemble), mesh)
    return models


def training_and_held_out(
    load: Callable[[DataConfig], list], data: DataConfig, evaluation_data: DataConfig | None, seed: int
) -> tuple[list, list]:
    """Loads the training records, and the held-out ones from their own source or as a share of the first."""
    records = load(data)
    if evaluation_data is not None:
        return records, load(evaluation_data)
    return split_held_out(records, data.held_out, seed)


def unseen(load: Callable[[DataConfig], list], data: DataConfig, seed: int) -> list:
    """Loads records to evaluate on: those that training held out where `data.held_out` says how many, else all."""
    records = load(data)
    return split_held_out(records, data.held_out, seed)[1] if data.held_out else records


def prompt_batch(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    too_long: TooLongPrompt,
    sequence_parts: int = 1,
) -> tuple[list[Prompt], PromptBatch]:
    """Encodes prompts and pads them on the left to one length.

    Args:
        prompts: the records.
        tokenizer: with its chat template.
        max_length: longest prompt in tokens; None for no limit.
        too_long: what to do with a longer one; one that cannot be truncated so far is refused.
        sequence_parts: parts of the time axis on the mesh, which are to be equal.

    Returns:
        The prompts that were kept, as they were cut, and their batch, whose `index` counts these.
    """
    if too_long == "truncate":
        if max_length is not None:
            prompts, cut = truncate_prompts(tokenizer, prompts, max_length)
            if cut:
                say(f"Cut {cut:,} prompts to max_prompt_length, {max_length} tokens", style="yellow")
        too_long = "error"
    encoded, left_out = encode_prompts(tokenizer, prompts, max_length=max_length, too_long=too_long)
    say_left_out(left_out, "prompts", f"max_prompt_length, {max_length} tokens")
    longest = max(len(prompt.tokens) for prompt in encoded)
    length = round_up(longest, lcm(PROMPT_LENGTH_MULTIPLE, sequence_parts))
    batch = pad_prompts(encoded, length, pad_token=tokenizer.pad_token_id)
    return [prompts[prompt.index] for prompt in encoded], replace(batch, index=np.arange(len(encoded), dtype=np.int32))


def say_left_out(count: int, what: str, limit: str) -> None:
    """Says how many records were left out for their length, if any."""
    if count:
        say(f"Left out {count:,} {what} longer than {limit}", style="yellow")


def check_row_length(key: str, length: int, config: ModelConfig) -> None:
    """Refuses training on rows that are longer than the model's context."""
    if length > config.context:
        raise UserError(
            f"{key} is {length}, but the model's context is {config.context} tokens",
            fix=f"lower {key} to {config.context} or less, or start from a model with a longer context.",
        )


def check_context(key: str, response_length: int, prompts: PromptBatch, models: Mapping[str, ModelConfig]) -> None:
    """Refuses prompts and responses that together do not fit the context of each of the models.

    Args:
        key: config key of the response length.
        response_length: longest response in tokens.
        prompts: all of them.
        models: what to call a model in the message, and the model's description.
    """
    longest = int(prompts.mask.sum(axis=1).max())
    for name, config in models.items():
        if longest + response_length > config.context:
            raise UserError(
                f"{key} is {response_length} and the longest prompt has {longest} tokens, {longest + response_length} together;"
                f" the context of the {name} is {config.context} tokens",
                fix=f"lower {key}, or do without the longest prompts.",
            )


def place_model(model: nnx.Module, mesh: jax.sharding.Mesh) -> nnx.Module:
    """Lays a model's parameters out over the mesh."""
    definition, state = nnx.split(model)
    return nnx.merge(definition, shard_state(state, mesh))


def shared_bases(source: ModelSource, mesh: jax.sharding.Mesh) -> Bases:
    """The bases of a job's models, laid out over the mesh and stored as its source says."""
    return Bases(source.compute, source.base_storage, mesh)


def batch_layout(mesh: jax.sharding.Mesh, batch_size: int, key: str) -> BatchLayout:
    """The rows of batches spread over the data axes of the mesh; refuses a batch size, set by `key`, that does not divide."""
    check_rows_divide(key, batch_size, mesh)
    return BatchLayout(batch_sharding(mesh))


def check_rows_divide(key: str, rows: int, mesh: jax.sharding.Mesh, *, micro_batches: int = 1) -> None:
    """Refuses rows, set by `key` and computed in so many micro-batches, that the devices cannot share evenly."""
    parts, keys = parts_of("batch", mesh), keys_of("batch")
    if rows % (parts * micro_batches):
        at_a_time = f" in each of {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise UserError(
            f"{key} is {rows}, which is no multiple of the {parts} devices that share a batch ({keys}){at_a_time}",
            fix=f"choose a multiple of {parts * micro_batches}, or make {keys} a divisor of {rows // micro_batches}.",
        )


def check_time_divides(key: str, length: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses rows of a length, set by `key`, of which the devices that divide the time axis would not get equal parts."""
    parts, keys = parts_of("time", mesh), keys_of("time")
    if length % parts:
        fitting = ", ".join(str(count) for count in range(1, parts) if length % count == 0)
        raise UserError(
            f"{keys} = {parts} does not divide {key}, which is {length}",
            fix=f"set {key} to {round_up(length, parts)}, or {keys} to one of {fitting}.",
        )
