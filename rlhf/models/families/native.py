"""This package's own folders, for descriptions that no Hugging Face class in the registry can express.

config.json holds the fields of `ModelConfig`, the tensors carry our own names and shapes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from flax import nnx

from rlhf.errors import UserError
from rlhf.models.config import AttentionConfig, ModelConfig, RopeConfig
from rlhf.models.families.layouts import StoredTensor, kept
from rlhf.models.transformer import Transformer

HEAD = kept("score.kernel", "kernel")


@dataclass(frozen=True)
class NativeFamily:
    """Our own form, with the interface of `Family`; it can express everything."""

    model_type: str = "rlhf_decoder"
    causal_architecture: str = "RlhfDecoderForCausalLM"
    scorer_architecture: str = "RlhfDecoderForSequenceClassification"
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    renamed: Mapping[str, str] = ()
    head: StoredTensor = HEAD

    def config_from_hf(self, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Reads the fields of `ModelConfig` back."""
        saved = raw.get("model", {})
        known = {field.name for field in fields(ModelConfig)}
        if saved.keys() != known:
            raise UserError(
                f"{where}: the keys under 'model' are not those of this version: missing {sorted(known - saved.keys())}, "
                f"unknown {sorted(saved.keys() - known)}",
                fix="load the folder with the version of this package that wrote it.",
            )
        groups = {"rope": RopeConfig(**saved["rope"]), "attention": AttentionConfig(**saved["attention"])}
        return ModelConfig(**saved | groups)

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """Writes them."""
        return {
            "model_type": self.model_type,
            "model": asdict(config),
            "tie_word_embeddings": config.tied_embeddings,
        }

    def cannot_express(self, config: ModelConfig) -> None:
        """There is nothing that it cannot."""

    def tensor_of(self, path: str, config: ModelConfig) -> StoredTensor:
        """The tensor that holds a parameter, given its dotted path."""
        return kept(path, path)

    def tensors(self, config: ModelConfig) -> list[StoredTensor]:
        """Every parameter under its path, in its shape."""
        abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract, nnx.Param))]
        return [kept(path, path) for path in paths]


FAMILY = NativeFamily()
