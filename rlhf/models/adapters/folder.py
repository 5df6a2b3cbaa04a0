"""Adapters as folders: adapter_config.json, which names the base, and adapter_model.safetensors.

A LoRA adapter is written as PEFT writes it, if its base has a class in transformers. The others are written in a form of our own,
with the configuration under `rlhf_adapter` and tensors named after the parameters. A scorer's adapter has the head beside it, and
its shift and scale in rlhf_reward.json.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models.adapters import peft_format
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.adapters.virtual_tokens import PrefixNetwork
from rlhf.models.families.family import Family
from rlhf.models.hub_download import download_model, is_hub_name
from rlhf.models.partition import AdapterParam
from rlhf.models.transformer import Transformer

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OWN_KEY = "rlhf_adapter"
BASE_KEY = "base_model_name_or_path"
STATISTICS_FILE = "rlhf_reward.json"
SCORER_TASK = "SEQ_CLS"


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG_FILE).is_file()


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it lies in its folder.

    Attributes:
        folder: where it lies.
        raw: its adapter_config.json.
    """

    folder: Path
    raw: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "StoredAdapter":
        """Reads the configuration.

        Raises:
            UserError: it is broken, or of a kind that is not supported.
        """
        file = folder / CONFIG_FILE
        raw = _read_json(file)
        if not (peft_format.is_lora(raw) or OWN_KEY in raw):
            raise UserError(
                f"{file}: adapters of type {raw.get('peft_type')!r} are not supported",
                fix="use a LoRA adapter of PEFT, or one that this package wrote.",
            )
        return cls(folder, raw)

    @property
    def base_name(self) -> str:
        """What the base is called: a folder, or a name on the hub."""
        return str(self.raw.get(BASE_KEY))

    @property
    def base(self) -> Path:
        """The folder of the base, which is fetched if it is a name on the hub.

        Raises:
            UserError: it is not there.
        """
        named = self.base_name
        for path in (Path(named).expanduser(), self.folder / named):
            if path.is_dir():
                return path
        if is_hub_name(named):
            return download_model(named)
        raise UserError(
            f"{self.folder / CONFIG_FILE}: the adapter's base is {named}, which is no folder here",
            fix=f"set {BASE_KEY} there to the base's folder, or its name on the hub.",
        )

    @property
    def statistics(self) -> dict[str, float]:
        """Shift and scale of a scorer; empty where nobody has measured them."""
        file = self.folder / STATISTICS_FILE
        return _read_json(file) if file.is_file() else {}

    @property
    def is_scorer(self) -> bool:
        """Whether a scorer's head lies beside it."""
        return self.raw.get("task_type") == SCORER_TASK

    def put_on(self, base: Transformer, family: Family) -> tuple[Transformer, np.ndarray | None]:
        """Puts the adapter into its base.

        Args:
            base: keeps its arrays, which the result shares.
            family: of the base.

        Returns:
            The adapted model, and the head's kernel in the checkpoint's layout where there is one.

        Raises:
            UserError: the files cannot be read, or do not fit the base.
        """
        try:
            tensors = load_file(self.folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.folder / WEIGHTS_FILE} cannot be read: {error}",
                fix="restore the file, or train the adapter again.",
            ) from error
        head = tensors.pop(_head_name(family), None)
        if peft_format.is_lora(self.raw):
            return peft_format.from_peft(base, family, self.raw, tensors, str(self.folder)), head
        return self._own(base, tensors), head

    def _own(self, base: Transformer, tensors: dict[str, np.ndarray]) -> Transformer:
        saved = self.raw[OWN_KEY]
        known = {field.name for field in fields(AdapterConfig)}
        if saved.keys() != known:
            raise UserError(
                f"{self.folder / CONFIG_FILE}: the keys under {OWN_KEY!r} are not those of this version: "
                f"missing {sorted(known - saved.keys())}, unknown {sorted(saved.keys() - known)}",
                fix="load the folder with the version of this package that wrote it.",
            )
        config = AdapterConfig(**saved | {"targets": tuple(saved["targets"])})
        adapted = insert(base, config, nnx.Rngs(0))
        expected = {_dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(adapted, AdapterParam))}
        unfit = expected.keys() ^ tensors.keys()
        unfit |= {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
        if unfit:
            raise UserError(
                f"{self.folder}: the adapter does not fit its base: {', '.join(sorted(unfit)[:4])}",
                fix=f"check that {BASE_KEY} in {CONFIG_FILE} names the base that it was trained on.",
            )
        for name, variable in expected.items():
            variable.set_value(jnp.asarray(tensors[name]))
        return adapted


def adapter_files(
    transformer: Transformer, family: Family, base: str, head: np.ndarray | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Contents of adapter_config.json and adapter_model.safetensors.

    Args:
        transformer: with its adapter.
        family: of the base.
        base: folder of the base, or its name on the hub.
        head: a scorer's kernel in the checkpoint's layout, or None.
    """
    if transformer.adapter_config.kind == "lora" and peft_format.has_modules(family, transformer.config):
        options, tensors = peft_format.to_peft(transformer, family)
    else:
        transformer = _without_network(transformer)
        options = {OWN_KEY: asdict(transformer.adapter_config)}
        flat = nnx.to_flat_state(nnx.state(transformer, AdapterParam))
        tensors = {_dotted(path): np.asarray(variable[...]) for path, variable in flat}
    options |= {BASE_KEY: base, "task_type": "CAUSAL_LM" if head is None else SCORER_TASK}
    if head is not None:
        options |= {"modules_to_save": [family.head.name.removesuffix(".weight")]}
        tensors[_head_name(family)] = head
    return options, tensors


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes adapter_model.safetensors."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not valid JSON: {error.msg}", fix="restore the file.") from None


def _without_network(transformer: Transformer) -> Transformer:
    """Drops the network that makes a prefix; what it makes stays."""
    network = transformer.blocks.attention.prefix
    if not isinstance(network, PrefixNetwork):
        return transformer
    folded = nnx.clone(transformer)
    folded.blocks.attention.prefix = network.folded()
    folded.adapter_config = replace(transformer.adapter_config, reparameterization=0)
    return folded


def _head_name(family: Family) -> str:
    return f"{peft_format.PREFIX}{family.head.name}"


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
