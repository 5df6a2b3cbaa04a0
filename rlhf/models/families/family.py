"""What one checkpoint family is: how its config.json reads, and what it calls each parameter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.families.comparison import first_difference
from rlhf.models.families.hf_config import HfConfig
from rlhf.models.families.layouts import StoredTensor, matrix

TOKEN_COUNT_KEY = "rlhf_token_count"
HEAD = matrix("score.weight", "kernel")


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint folder.

    Attributes:
        model_type: value of that key in config.json.
        causal_architecture: class name written for a language model.
        scorer_architecture: class name written for a scorer.
        read: arguments of `ModelConfig` from a config.json; raises `UserError` for what the network cannot compute.
        write: the contents of a config.json.
        tensors: every tensor that a checkpoint of this family may have; those whose parameters a model has not are not
            there.
        required: keys that config.json must have.
        inert: options of this family's config.json that do not change what a trained network computes.
        ignored: ends of names of tensors that are there but carry nothing.
        prefix: what names in the checkpoint begin with, and leave out in some.
        renamed: names of tensors in other checkpoints, and what they are called here.
        head: the kernel of a scorer.
    """

    model_type: str
    causal_architecture: str
    scorer_architecture: str
    read: Callable[[HfConfig], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    tensors: Callable[[ModelConfig], list[StoredTensor]]
    required: tuple[str, ...] = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    inert: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    prefix: str = "model."
    renamed: Mapping[str, str] = ()
    head: StoredTensor = HEAD

    def config_from_hf(self, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Reads a config.json.

        Args:
            raw: its contents.
            where: the file, for messages.

        Raises:
            UserError: a key is missing, or an option is set that the network cannot compute.
        """
        options = HfConfig(raw, where, self.model_type, self.required)
        arguments = self.read(options)
        options.close(self.inert)
        return ModelConfig(**arguments, token_count=raw.get(TOKEN_COUNT_KEY), family=self.model_type)

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """Writes a config.json, as transformers 5 reads it."""
        token_count = {} if config.token_count is None else {TOKEN_COUNT_KEY: config.token_count}
        return {"model_type": self.model_type} | self.write(config) | token_count

    def tensor_of(self, path: str, config: ModelConfig) -> StoredTensor:
        """The tensor that holds a parameter, given its dotted path."""
        return next(tensor for tensor in self.tensors(config) if path in tensor.parameters)

    def cannot_express(self, config: ModelConfig) -> str | None:
        """Why a description does not fit this family: the first choice that would read differently after it was written.

        None when it fits.
        """
        try:
            again = self.config_from_hf(self.config_to_hf(config), self.model_type)
        except UserError as error:
            return str(error).splitlines()[0]
        difference = first_difference(config, again)
        if difference is None:
            return None
        name, value, other = difference
        return f"{name} = {value!r} ({self.model_type}: {other!r})"
