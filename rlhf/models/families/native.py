"""This package's own folders, for descriptions that no Hugging Face class in the registry can express.

config.json holds the fields of `ModelConfig`, the tensors carry our own names and shapes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from rlhf.errors import UserError
from rlhf.models.config import AttentionConfig, ModelConfig, RopeConfig
from rlhf.models.families.family import Family, TensorName

MODEL_TYPE = "rlhf_decoder"


class OwnNames(Mapping[str, TensorName]):
    """Every parameter is called by its path and kept in its shape."""

    def __getitem__(self, path: str) -> TensorName:
        return TensorName(path)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
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


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes them."""
    return {"model_type": MODEL_TYPE, "model": asdict(config), "tie_word_embeddings": config.tied_embeddings}


FAMILY = Family(
    model_type=MODEL_TYPE,
    causal_architecture="RlhfDecoderForCausalLM",
    scorer_architecture="RlhfDecoderForSequenceClassification",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    cannot_express=lambda config: None,
    names=OwnNames(),
    head=TensorName("score.kernel"),
)
