"""The chat template: ChatML on the reserved ids, for training, generation and other programs.

A turn is `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n`. A dialogue begins with `<|endoftext|>`, as all
documents do. Source: ChatML (OpenAI 2023), as SmolLM2 and Qwen have it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from slmjax.errors import UserError
from slmjax.text.conversations import ASSISTANT, PreferencePair, Turn
from slmjax.text.tokenizer import CALC_END, EOT, RESULT, TURN_END, TURN_START, Special, Tokenizer

MARKS = (EOT, TURN_START, TURN_END)  # the special tokens that a tokenizer must have
# The content of a message and its end.
_CONTENT = "{{- message['content'] | trim -}}{{- '" + TURN_END + "\\n' -}}"
# In Jinja, for Hugging Face and llama.cpp. Both drop a line feed that follows `%}`, so all line
# feeds are in string literals. No `{% generation %}`: some readers of GGUF files refuse it.
TEMPLATE = "".join(
    [
        "{{- '" + EOT + "' -}}",
        "{%- for message in messages -%}",
        "{{- '" + TURN_START + "' + message['role'] + '\\n' -}}",
        _CONTENT,
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        "{{- '" + TURN_START + ASSISTANT + "\\n' -}}",
        "{%- endif -%}",
    ]
)
# The same with the assistant's turns marked, for trainers that take their mask from the template.
TRAINING_TEMPLATE = TEMPLATE.replace(
    _CONTENT,
    "{%- if message['role'] == '" + ASSISTANT + "' -%}"
    "{%- generation -%}{{- message['content'] | trim + '" + TURN_END + "' -}}{%- endgeneration -%}"
    "{{- '\\n' -}}"
    "{%- else -%}{{- message['content'] | trim + '" + TURN_END + "\\n' -}}{%- endif -%}",
)

Part = str | Special


class ChatIds(NamedTuple):
    """The ids that mark the turns of a dialogue.

    Attributes:
      eot: before a dialogue.
      start, end: around a turn.
      answer: the ids of "assistant\\n", which follow `start` where an answer begins.
      result, result_end: around what a calculator writes; -1 where the tokenizer has no such ids.
    """

    eot: int
    start: int
    end: int
    answer: tuple[int, ...]
    result: int = -1
    result_end: int = -1


def chat_ids(tokenizer: Tokenizer) -> ChatIds:
    """Return the ids of the template's marks.

    Raises: UserError for a tokenizer without them.
    """
    special = tokenizer.special
    for name in MARKS:
        if name not in special:
            raise UserError(
                f"the tokenizer has no special token '{name}', which marks the turns of a "
                "dialogue: it was given, or trained before ids were reserved. A new id would mean "
                "nothing to the model and shift the ids of saved text; train the base with a "
                "tokenizer that has it."
            )
    return ChatIds(
        eot=special[EOT],
        start=special[TURN_START],
        end=special[TURN_END],
        answer=tuple(tokenizer.encode(f"{ASSISTANT}\n")),
        result=special.get(RESULT, -1),
        result_end=special.get(CALC_END, -1),
    )


def dialogue_parts(turns: Sequence[Turn]) -> list[Part]:
    """Return the texts and special tokens of a dialogue, without its leading end-of-text.

    Text cannot hold a special token, so no content can end its own turn.
    """
    parts: list[Part] = []
    for turn in turns:
        parts += [Special(TURN_START), f"{turn.role}\n"]
        # The content is encoded by itself, so that a dialogue begins with the ids of its prompt.
        parts += [turn.content.strip(), Special(TURN_END), "\n"]
    return parts


def prompt_parts(turns: Sequence[Turn]) -> list[Part]:
    """Return `dialogue_parts`, and then the header of the assistant's next answer."""
    return [*dialogue_parts(turns), Special(TURN_START), f"{ASSISTANT}\n"]


def pair_parts(pair: PreferencePair) -> list[Part]:
    """Return the parts of both dialogues, the chosen one first, with an end-of-text between them.

    It is one document, so that the two are packed into the same row.
    """
    chosen = dialogue_parts([*pair.prompt, Turn(ASSISTANT, pair.chosen)])
    rejected = dialogue_parts([*pair.prompt, Turn(ASSISTANT, pair.rejected)])
    return [*chosen, Special(EOT), *rejected]
