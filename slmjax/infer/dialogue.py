"""A dialogue with a model: its turns, the part that fits into the model, and its record."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from slmjax.errors import UserError
from slmjax.text.chat_template import prompt_parts
from slmjax.text.conversations import ASSISTANT, SYSTEM, USER, Turn
from slmjax.text.records import CHAT, PAIRS
from slmjax.text.tokenizer import Tokenizer

# Tasks and kinds of sources that teach a model to answer in turns.
CHAT_TASKS = ("orpo",)
CHAT_KINDS = (CHAT, PAIRS)
# Where the answer of a base model ends, which goes on to write the next question itself.
NEW_TURNS = (
    "\nHuman:",
    "\nUser:",
    "\nAssistant:",
    "\nSystem:",
    "\n### Human",
    "\n### User",
    "\n### Assistant",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
)


@dataclasses.dataclass
class Exchange:
    """A question and its answer."""

    question: str
    answer: str | None = None  # None: not answered yet

    def turns(self) -> list[Turn]:
        """Return its turns; none where the answer is empty, which a model would imitate."""
        if self.answer is None:
            return [Turn(USER, self.question)]
        if not self.answer.strip():
            return []
        return [Turn(USER, self.question), Turn(ASSISTANT, self.answer)]


class Prompt(NamedTuple):
    """Token ids for a model, without the leading end-of-text."""

    ids: list[int]
    left_out: int  # exchanges at the beginning of the dialogue that did not fit


@dataclasses.dataclass
class Dialogue:
    """What was said so far; `system` is the text of the system turn, "" for none."""

    system: str = ""
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)

    def turns(self, first: int = 0) -> list[Turn]:
        """Return the system turn and the turns of the exchanges from number `first` on."""
        turns = []
        if self.system.strip():
            turns.append(Turn(SYSTEM, self.system))
        for exchange in self.exchanges[first:]:
            turns += exchange.turns()
        return turns

    def messages(self) -> list[dict[str, str]]:
        """Return the turns as {"role", "content"}, as data sets have them."""
        return [turn._asdict() for turn in self.turns()]

    def prompt(self, tokenizer: Tokenizer, room: int, longest: int) -> Prompt:
        """Return the prompt of the next answer.

        The oldest exchanges are left out until the answer has `room`. The system turn and the last
        question stay, with less room if need be.

        Args:
          room: tokens that the answer may need.
          longest: tokens of a dialogue that the model knows.
        Raises: UserError if the system turn and the question leave no room at all.
        """
        last = len(self.exchanges) - 1
        for first in range(last + 1):
            ids = tokenizer.sequence(*prompt_parts(self.turns(first)))
            size = len(ids) + 1  # with the end-of-text before it
            if size + room <= longest:
                return Prompt(ids, first)
        if size >= longest:
            subject = "the question has"
            if self.system.strip():
                subject = "the system turn and the question have"
            trained = f"the model was trained on {longest} and knows no positions beyond"
            raise UserError(f"{subject} {size} tokens; {trained}. Write less.")
        return Prompt(ids, last)


def trained_on_dialogues(config: Any) -> bool:
    """Return whether a run of this saved config has learned to answer in turns.

    It has where its task is one of CHAT_TASKS or one of its sources is of CHAT_KINDS.
    """
    task = config.task.split()[:1]
    if task and task[0] in CHAT_TASKS:
        return True
    sources = config.data.sources
    # A source is a path, a mapping, or an object with fields; those of older runs have no kind.
    if isinstance(sources, Mapping):
        sources = list(sources.values())
    for source in sources:
        if isinstance(source, Mapping):
            kind = source.get("kind", "")
        else:
            kind = getattr(source, "kind", "")
        if kind in CHAT_KINDS:
            return True
    return False
