"""Merging an adapter into its base: a whole model again, as fast as the base, that every tool can load."""

from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from rlhf.data.tokenizers import load_tokenizer
from rlhf.errors import UserError
from rlhf.models.adapters.description import describe_adapter
from rlhf.models.adapters.merge import merge
from rlhf.models.config import ComputeConfig
from rlhf.models.hub import is_scorer, load_scorer, load_transformer, read_config, tokenizer_folder
from rlhf.models.source import holds_adapter, save_model
from rlhf.stages.folder import begin_writing, close_folder, open_folder
from rlhf.tracking.console import say


@dataclass(frozen=True)
class Config:
    """Merge an adapter into its base.

    Attributes:
        output: folder to write.
        adapter: folder of the adapter, of a policy or a reward model; LoRA, IA3, and BitFit where the base has biases.
        compute: dtypes of the merged model.
    """

    output: str = "runs/merged"
    adapter: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def run(config: Config) -> dict[str, Any]:
    """Merges and writes the model's folder; returns the summary."""
    folder = open_folder(config)
    if config.adapter is None or not holds_adapter(config.adapter):
        raise UserError(
            f"adapter: {config.adapter} holds no adapter",
            fix="set adapter to the folder of a stage that trained one, or of PEFT.",
        )
    if is_scorer(read_config(config.adapter)):
        model = load_scorer(config.adapter, config.compute, rngs=nnx.Rngs(0))
        kind = model.transformer.adapter_config
        model.transformer = merge(model.transformer)
    else:
        model = load_transformer(config.adapter, config.compute)
        kind = model.adapter_config
        model = merge(model)
    begin_writing(folder)
    save_model(model, folder.model, load_tokenizer(tokenizer_folder(config.adapter)), None)
    say(f"Merged {describe_adapter(kind)}")
    return close_folder(folder, {"adapter": config.adapter, "kind": kind.kind})
