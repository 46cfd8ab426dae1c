"""A tokenizer as other programs read it: tokenizer.json, and with it the chat template.

Hugging Face's transformers read the template from chat_template.jinja, older readers and
llama.cpp's converter from tokenizer_config.json. The variant that marks the assistant's turns has a
file of its own, as some readers refuse its `{% generation %}`.
"""

import os
from typing import Any

from etils import epath

from slmjax.text.chat_template import MARKS, TEMPLATE, TRAINING_TEMPLATE
from slmjax.text.files import write_atomic
from slmjax.text.tokenizer import EOT, Tokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
CHAT = "chat_template.jinja"
VARIANTS = "additional_chat_templates"  # a folder; a template's name is that of its file
TOKENIZER_NAMES = (TOKENIZER, CONFIG, CHAT, VARIANTS)


def write_tokenizer_files(folder: epath.Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer's files, with the template where it has the special tokens for it."""
    tokenizer.save(os.fspath(folder / TOKENIZER))
    if not all(name in tokenizer.special for name in MARKS):
        return
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": EOT,
        # llama.cpp begins a text as our documents begin, and a chat with one end-of-text only.
        # Transformers 5 ignore it.
        "add_bos_token": True,
        # Otherwise transformers removes blanks before punctuation from what it decodes.
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    write_atomic(folder / CONFIG, config)
    write_atomic(folder / CHAT, TEMPLATE)
    write_atomic(folder / VARIANTS / "training.jinja", TRAINING_TEMPLATE)
