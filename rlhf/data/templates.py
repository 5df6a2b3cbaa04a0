"""Chat templates: how a dialogue becomes one text.

They are Jinja templates in the form that `transformers` stores beside a tokenizer, so an exported model carries the one that it
was trained with. `{% generation %}` marks what the assistant says, including the end-of-sequence token that ends each of
its turns.

The text before an answer never ends with a space: in the vocabularies of byte-level and SentencePiece tokenizers the space
belongs to the word after it, so it is part of the answer (and `decode_response` takes it off again).
"""

from typing import TYPE_CHECKING

from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INPUT_MARK = "\n\n### Input:\n"
"""Stands between an instruction and the input it applies to inside one user turn. The "alpaca" template keeps it, which is
its published form; the others render it as a blank line."""

_CONTENT = "{% set content = message['content'] | replace('\\n\\n### Input:\\n', '\\n\\n') %}"

_USER_AI = (
    "{% for message in messages %}" + _CONTENT + "{% if message['role'] == 'assistant' %}"
    "{{ 'AI:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ content + ' ' }}"
    "{% elif message['role'] == 'tool' %}{{ 'TOOL: ' + content + ' ' }}"
    "{% else %}{{ 'USER: ' + content + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'AI:' }}{% endif %}"
)

_HH = (
    "{% for message in messages %}" + _CONTENT + "{% if message['role'] == 'assistant' %}"
    "{{ '\\n\\nAssistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ content }}"
    "{% elif message['role'] == 'tool' %}{{ '\\n\\nTool: ' + content }}"
    "{% else %}{{ '\\n\\nHuman: ' + content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)

# Every turn ends with the tokenizer's own end token, which is <|im_end|> where the tokenizer was made for ChatML.
_CHATML = (
    "{% for message in messages %}" + _CONTENT + "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ content + eos_token + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The published form has no space or newline between "### Response:" and the answer. A system turn replaces the preamble.
_ALPACA = (
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{% if '\\n\\n### Input:\\n' in messages[0]['content'] %}"
    "{{ 'Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% else %}"
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% endif %}{% endif %}"
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '### Response:' }}{% generation %}{{ content + eos_token }}{% endgeneration %}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% elif message['role'] == 'system' %}{{ content + '\\n\\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Tool:\\n' + content + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + content + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}"
)

# No marks at all: the answer continues the prompt's text, after a space unless the prompt already ends with white space.
_PLAIN = (
    "{% for message in messages %}" + _CONTENT + "{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{% if not loop.first and messages[loop.index0 - 1]['content'][-1:] not in (' ', '\\n', '\\t') %}{{ ' ' }}{% endif %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ content }}{% endif %}"
    "{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    "user_ai": _USER_AI,
    "alpaca": _ALPACA,
    "hh": _HH,
    "chatml": _CHATML,
    "plain": _PLAIN,
}


def apply_template(tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    """Gives the tokenizer the named chat template; "tokenizer" keeps the one that it came with.

    Where the tokenizer begins its texts with a beginning-of-sequence token, so does the template.

    Raises:
        UserError: no template has this name, or the tokenizer has none of its own to keep.
    """
    if name == "tokenizer":
        require_template(tokenizer)
        return
    if name not in TEMPLATES:
        raise UserError(
            f"template: no chat template is called {name!r}",
            fix=f"choose one of {', '.join([*TEMPLATES, 'tokenizer'])}",
        )
    bos = "{{ bos_token }}" if begins_with_bos(tokenizer) else ""
    tokenizer.chat_template = bos + TEMPLATES[name]


def require_template(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raises a UserError unless the tokenizer has a chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path or ''} has no chat template of its own".replace("  ", " "),
            fix=f"set template to one of {', '.join(TEMPLATES)}",
        )


def begins_with_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """True when the tokenizer puts its beginning-of-sequence token before every text."""
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer.backend_tokenizer.encode("").ids[:1] == [tokenizer.bos_token_id]
