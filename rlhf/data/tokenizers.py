"""Tokenizers: loading the published forms, training a byte-level BPE of one's own, and checking that two parts fit together.

`transformers` is imported where it is used: it takes a second, and not every caller needs it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<|pad|>", "<|bos|>", "<|eos|>"

# Where the text may be cut before merging. Letters form words with the space before them, as in GPT-2; every Han character
# stands alone, because Chinese has no spaces and a whole clause would otherwise count as one word and become one token.
_WORDS = r" ?[\p{L}\p{M}&&[^\p{Han}]]+|\p{Han}|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "encoder.json", "vocab.json")

_USUAL_PAD_TOKENS = (PAD_TOKEN, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>", "<unk>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, extra_special_tokens: tuple[str, ...] = ()
) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE (1508.07909, on bytes as in GPT-2); the same texts always give the same tokenizer.

    It puts <|bos|> before every text and has <|pad|> (id 0), <|bos|> (1) and <|eos|> (2). Every text can be encoded and comes
    back unchanged.

    Args:
        texts: what the merges are learned from.
        vocab_size: number of tokens, at least the 256 bytes and the special tokens. Fewer come out when the texts are too
            small for as many merges.
        extra_special_tokens: further tokens that are never cut, such as the marks of a chat template.

    Raises:
        UserError: the vocabulary cannot hold the bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, *extra_special_tokens]
    if vocab_size < 256 + len(special):
        raise UserError(
            f"vocab_size: {vocab_size} tokens cannot hold the 256 bytes and {len(special)} special tokens",
            fix=f"set it to at least {256 + len(special)}",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, backend.token_to_id(BOS_TOKEN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=list(extra_special_tokens),
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Loads a tokenizer from a folder, from a stage's output folder, or by its name on the Hugging Face hub.

    A folder may hold the files of `transformers` or GPT-2's original pair, encoder.json and vocab.bpe. A tokenizer without a
    padding token of its own gets a special token that stands for nothing else; only when there is none does padding share the
    end-of-sequence token (the masks, not the ids, tell padding apart).

    Raises:
        UserError: nothing is there, or the tokenizer has no end-of-sequence token.
    """
    folder = _tokenizer_folder(Path(path).expanduser())
    tokenizer = _load_gpt2_files(folder) if (folder / "encoder.json").exists() else _load_pretrained(folder, str(path))
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {path} has no end-of-sequence token",
            fix='add "eos_token" to its tokenizer_config.json',
        )
    _ensure_pad_token(tokenizer)
    return tokenizer


def _tokenizer_folder(path: Path) -> Path:
    """The folder with the tokenizer's files: the path itself, or `model/` or `tokenizer/` inside a stage's output."""
    for folder in (path, path / "model", path / "tokenizer"):
        if any((folder / name).exists() for name in _TOKENIZER_FILES):
            return folder
    return path


def _load_pretrained(folder: Path, given: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_local_path = folder.exists() or folder.is_absolute() or given.startswith((".", "~")) or given.count("/") > 1
    if is_local_path and not folder.is_dir():
        raise UserError(
            f"tokenizer: the folder {given} does not exist", fix="check the path, or run the stage that writes it first"
        )
    if is_local_path and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise UserError(
            f"tokenizer: the folder {given} holds none; expected tokenizer.json, found {found}",
            fix="copy the tokenizer's files beside the model, or give another folder",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=is_local_path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"tokenizer: none can be loaded from {given} ({error})",
            fix="give a folder with tokenizer.json, or a name on the Hugging Face hub that this machine can reach",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer: {given} has no fast form", fix="save it with a tokenizer.json")
    return tokenizer


def _load_gpt2_files(folder: Path) -> "PreTrainedTokenizerFast":
    import json

    from transformers import GPT2Tokenizer

    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, clean_up_tokenization_spaces=False)


def _ensure_pad_token(tokenizer: "PreTrainedTokenizerFast") -> None:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.bos_token, tokenizer.eos_token}
    candidates = [token for token in (*_USUAL_PAD_TOKENS, *tokenizer.all_special_tokens) if token in vocabulary]
    tokenizer.pad_token = next((token for token in candidates if token not in taken), tokenizer.eos_token)


def check_vocabulary(tokenizer: "PreTrainedTokenizerFast", vocab_size: int, where: str) -> None:
    """Raises a UserError when the tokenizer has more tokens than the model's embedding has rows.

    Args:
        vocab_size: rows of the embedding.
        where: the config key or folder that the model comes from, for the message.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {needed:,} tokens, the model's embedding only {vocab_size:,} rows",
            fix="use the tokenizer that the model was trained with; for new tokens set model.add_token_rows in `rlhf sft`",
        )


def same_tokenizer(first: "PreTrainedTokenizerFast", second: "PreTrainedTokenizerFast") -> bool:
    """True when both cut text into the same tokens with the same ids and end it with the same token."""
    return (
        first.get_vocab() == second.get_vocab()
        and first.eos_token_id == second.eos_token_id
        and _segmentation(first) == _segmentation(second)
    )


def _segmentation(tokenizer: "PreTrainedTokenizerFast") -> tuple[object, ...]:
    import json

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return content["normalizer"], content["pre_tokenizer"], content["model"].get("merges")


def require_same_tokenizer(first: str | Path, second: str | Path, key: str) -> None:
    """Raises a UserError, which names the config key of the second folder, unless the tokenizers in both folders are the same."""
    if not same_tokenizer(load_tokenizer(first), load_tokenizer(second)):
        raise UserError(
            f"{key}: {first} and {second} have different tokenizers, so the token ids of one mean nothing to the other",
            fix="train both from the same base model or tokenizer",
        )
