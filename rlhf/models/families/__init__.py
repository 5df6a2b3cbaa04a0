"""The checkpoint families that can be read and written, by the `model_type` of their config.json."""

from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.families import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    native,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
)
from rlhf.models.families.family import Family
from rlhf.models.families.native import NativeFamily

# A model that belongs to no family yet is written as the first of these that can express it.
MODULES = (
    llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, olmo2, smollm3, stablelm, gpt_neox, gpt2, opt, bloom, falcon, phi3, native,
)  # fmt: skip
FAMILIES = {module.FAMILY.model_type: module.FAMILY for module in MODULES}


def family_of(model_type: str | None, where: str) -> Family | NativeFamily:
    """The family that reads a folder.

    Raises:
        UserError: there is none for this `model_type`.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type = {model_type!r} is not supported; supported: {', '.join(FAMILIES)}",
            fix="choose a checkpoint of a supported family.",
        )
    return FAMILIES[model_type]


def family_for(config: ModelConfig) -> tuple[Family | NativeFamily, str | None]:
    """The family that a model is written in: the one it came from, else the first that can express it.

    Returns:
        The family, and why transformers cannot load what is written: what does not fit the family it came from, or LLaMA;
        None where a class of transformers fits.
    """
    if config.family is not None:
        own = family_of(config.family, "model: family")
        reason = own.cannot_express(config)
        if reason is None:
            return own, None
    fitting = next(family for family in FAMILIES.values() if family.cannot_express(config) is None)
    if fitting is not native.FAMILY:
        return fitting, None
    return fitting, reason if config.family is not None else llama.FAMILY.cannot_express(config)
