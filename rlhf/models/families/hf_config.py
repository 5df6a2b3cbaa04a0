"""Reading config.json so that no option that changes the computation goes unnoticed.

Defaults and older spellings are those of transformers' own configuration classes. Every option is read, or known to change
nothing, or refused; keys that transformers does not know either are named in a warning.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from rlhf.errors import UserError
from rlhf.models.config import RopeConfig

logger = logging.getLogger(__name__)

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}

# Dropout is never applied: what is trained here is trained without. The others concern caching, tokens and initialisation.
INERT = frozenset(
    (
        "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "hidden_dropout", "attn_pdrop",
        "resid_pdrop", "embd_pdrop", "dropout", "layerdrop", "classifier_dropout", "pretraining_tp", "is_decoder",
    )
)  # fmt: skip

# Keys of config.json that a class of transformers passes over, but that say that the weights mean something else; with the value at
# which they do not.
NEVER_PASSED_OVER = {
    "apply_residual_connection_post_layernorm": False,
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "clip_qkv": None,
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "num_local_experts": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1.0,
    "sliding_window": None,
}

# Written by transformers, by those who trained the model, and by us, beside the options of the architecture.
BYSTANDERS = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "_num_labels", "_sliding_window_pattern",
        "attention_softmax_in_fp32", "attn_implementation", "auto_map", "bias_dropout_fusion", "cache_implementation",
        "finetuning_task", "gradient_checkpointing", "id2label", "is_encoder_decoder", "label2id",
        "masked_softmax_fusion", "model_type", "n_ctx", "n_embed", "n_positions", "num_labels", "offset_alibi",
        "output_attentions", "prefix", "problem_type", "rlhf_adapter", "rlhf_reward", "rlhf_token_count",
        "rope_local_base_freq", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "seq_length",
        "skip_bias_add", "skip_bias_add_qkv", "sliding_window_pattern", "task_specific_params", "tie_encoder_decoder",
        "tokenizer_class", "torch_dtype", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_return_dict",
    )
)  # fmt: skip


class HfConfig:
    """The options of a config.json, each noted when it is read.

    Args:
        raw: its contents.
        where: the file, for messages.
        model_type: whose defaults apply.
        required: keys that must be there.

    Raises:
        UserError: a required key is missing, or transformers cannot make sense of the contents.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, model_type: str, required: Iterable[str]):
        from transformers import CONFIG_MAPPING

        self.raw, self.where, self.model_type = raw, where, model_type
        self._class = CONFIG_MAPPING[model_type]
        aliases = self._class.attribute_map
        for key in required:
            if key not in raw and aliases.get(key) not in raw:
                raise UserError(
                    f"{where}: the key {key!r} is missing",
                    fix=f"check that this is the config.json of a {model_type} model.",
                )
        try:
            self._options = self._class(**{key: value for key, value in raw.items() if key != "model_type"})
        except Exception as error:
            raise UserError(
                f"{where}: transformers cannot read it: {error}",
                fix="restore the config.json that came with the weights.",
            ) from error
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(self._class.attribute_map.get(name, name))
        return getattr(self._options, name)

    def activation(self, name: str) -> str:
        """Our name of an activation."""
        value = self[name]
        if value not in ACTIVATIONS:
            raise self.unsupported(name, value, ACTIVATIONS)
        return ACTIVATIONS[value]

    def require_neutral(self, **neutral: Any) -> None:
        """Refuses options that are set to anything but the values given, at which they do nothing."""
        for name, value in neutral.items():
            if self[name] not in (value, None):
                raise self.unsupported(name, self[name], [value])

    def rope(self, parameters: Mapping[str, Any] | None = None, *, partial: bool = False) -> RopeConfig:
        """Rotary positions.

        Args:
            parameters: their description; None for `rope_parameters`.
            partial: whether this family heeds `partial_rotary_factor`.
        """
        parameters = dict(self["rope_parameters"] if parameters is None else parameters)
        kind = parameters.pop("rope_type", "default")
        parameters.pop("type", None)
        read = {"theta": float(parameters.pop("rope_theta"))}
        fraction = parameters.pop("partial_rotary_factor", None)
        if fraction not in (None, 1.0):
            if not partial:
                raise self.unsupported("partial_rotary_factor", fraction, [1.0])
            read["fraction"] = fraction
        match kind:
            case "default":
                pass
            case "linear":
                read |= {"scaling": "linear", "factor": float(parameters.pop("factor"))}
            case "llama3":
                read |= {
                    "scaling": "llama3",
                    "factor": float(parameters.pop("factor")),
                    "low_frequency_factor": float(parameters.pop("low_freq_factor")),
                    "high_frequency_factor": float(parameters.pop("high_freq_factor")),
                    "original_context": parameters.pop("original_max_position_embeddings"),
                }
            case _:
                raise self.unsupported("rope scaling of type", kind, ["default", "linear", "llama3"])
        for option in ("original_max_position_embeddings", "max_position_embeddings", "factor"):
            parameters.pop(option, None)
        if left := {name: value for name, value in parameters.items() if value is not None}:
            raise self.unsupported("rope option", left, ["none"])
        return RopeConfig(**read)

    def unsupported(self, name: str, value: Any, supported: Iterable[Any]) -> UserError:
        """The error for an option that the network cannot compute."""
        return UserError(
            f"{self.where}: {name} = {value!r} is not supported; supported: {', '.join(map(str, supported))}",
            fix="choose a checkpoint with one of these.",
        )

    def unread(self, inert: Iterable[str]) -> list[str]:
        """The options of the architecture that nobody has read and that are not among those that change nothing."""
        from transformers import PreTrainedConfig

        general = {field.name for field in fields(PreTrainedConfig)}
        return sorted({field.name for field in fields(self._class)} - general - self._read - INERT - set(inert))

    def close(self, inert: Iterable[str]) -> None:
        """Checks what has not been read.

        Args:
            inert: options of the family that do not change what a trained network computes.

        Raises:
            UserError: an option that nobody has read is not at its default.
        """
        defaults = self._class()
        for name in self.unread(inert):
            value, default = getattr(self._options, name), getattr(defaults, name)
            if value != default:
                raise self.unsupported(name, value, [default])
        known = {field.name for field in fields(self._class)}
        foreign = self.raw.keys() - known - set(self._class.attribute_map)
        for name in sorted(foreign & NEVER_PASSED_OVER.keys()):
            if self.raw[name] not in (None, NEVER_PASSED_OVER[name]):
                raise self.unsupported(name, self.raw[name], [NEVER_PASSED_OVER[name]])
        strange = [name for name in sorted(foreign - BYSTANDERS - NEVER_PASSED_OVER.keys()) if self.raw[name]]
        if strange:
            logger.warning(
                "%s: transformers does not know the keys %s of a %s model; they are passed over here too",
                self.where, ", ".join(strange), self.model_type,
            )  # fmt: skip


def rope_to_hf(rope: RopeConfig, *, partial: bool = False) -> dict[str, Any]:
    """`rope_parameters` of a config.json.

    Args:
        rope: rotary positions.
        partial: whether the family heeds `partial_rotary_factor`.
    """
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling != "none":
        written |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        written |= {
            "low_freq_factor": rope.low_frequency_factor,
            "high_freq_factor": rope.high_frequency_factor,
            "original_max_position_embeddings": rope.original_context,
        }
    return written | ({"partial_rotary_factor": rope.fraction} if partial else {})
