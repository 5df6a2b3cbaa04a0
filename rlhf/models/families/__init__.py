"""The checkpoint families that can be read and written, by the `model_type` of their config.json."""

from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.families import llama, native
from rlhf.models.families.family import Family

FAMILIES = {family.model_type: family for family in (llama.FAMILY, native.FAMILY)}


def family_of(model_type: str | None, where: str) -> Family:
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


def family_for(config: ModelConfig) -> tuple[Family, str | None]:
    """The family that a model is written in: LLaMA where it fits, so that transformers can load it, else our own.

    Returns:
        The family, and why LLaMA does not fit (None where it does).
    """
    reason = llama.cannot_express(config)
    return (llama.FAMILY, None) if reason is None else (native.FAMILY, reason)
