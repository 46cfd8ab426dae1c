"""The interface of every teacher: a request, its answer, and why a request fails.

The teachers themselves are in program_teacher.py (embedded), openai_teacher.py (any
OpenAI-compatible endpoint) and checkpoint_teacher.py (a model that this library trained).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmjax.synthesize.plan import Item, prompt

# Most tokens that a chat template puts around a message. Llama 3.1's, with its dates, has about 40.
TEMPLATE_TOKENS = 64


@dataclass(frozen=True)
class TeacherRequest:
    """A request for one document: a prompt with its parameters."""

    key: str  # plan.key of model, prompt and parameters
    prompt: str
    parameters: dict[str, Any]  # "max_tokens" among them
    item: Item  # the document that is asked for


@dataclass(frozen=True)
class Answer:
    """A teacher's answer."""

    text: str
    finish: str  # "stop" for a whole answer, "length" for one that was cut, else why it ended
    # (of the prompt, of the answer); None where the teacher does not report them.
    tokens: tuple[int, int] | None


class TeacherFault(Exception):
    """An attempt at a request failed.

    Args:
      reason: for rejects.jsonl and messages.
      tokens: (prompt, answer) that the failed request cost; None where only the teacher knows, so
        that everything that was reserved counts as spent.
      wait: seconds that the teacher asks to wait.
      again: whether the same request may succeed later.
      limit: whether the teacher only asks for fewer requests a minute.
      ends: error message for the whole run, where no request can succeed; else "".
    """

    def __init__(
        self,
        reason: str,
        tokens: tuple[int, int] | None = None,
        *,
        wait: float = 0.0,
        again: bool = True,
        limit: bool = False,
        ends: str = "",
    ):
        super().__init__(reason)
        self.reason = reason
        self.tokens = tokens
        self.wait = wait
        self.again = again
        self.limit = limit
        self.ends = ends


class Teacher:
    """Base class of teachers. A subclass sets the four attributes."""

    name = ""  # as config.synthesize.teacher has it
    model = ""  # part of every request's key
    licence = ""  # note on every document
    date = ""  # when all its texts were written; "": each when it was answered

    def prompt(self, item: Item) -> str:
        """Return the text that is sent for an item."""
        return prompt(item)

    def parameters(self, item: Item) -> dict[str, Any]:
        """Return what an answer depends on apart from model and prompt, with "max_tokens"."""
        raise NotImplementedError

    async def ask(self, request: TeacherRequest) -> Answer:
        """Return the answer to a request. Raises: TeacherFault."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close connections and end tasks."""


class SamplingTeacher(Teacher):
    """Base class of teachers that sample their answers; each item has a seed of its own.

    Args:
      sampling: parameters that all requests have, with "max_tokens".
      seed: of the run.
    """

    def __init__(self, sampling: Mapping[str, Any], seed: int):
        self._sampling = dict(sampling)
        self._seed = seed

    def parameters(self, item: Item) -> dict[str, Any]:
        # The factor is larger than the number of any item, so that runs with neighbouring seeds
        # share none. The remainder fits into the signed 32-bit integer of most endpoints.
        seed = (self._seed * 1_000_003 + item.number) % 2**31
        return {**self._sampling, "seed": seed}


def reservation(request: TeacherRequest) -> tuple[int, int]:
    """Return the most tokens that a request can cost: (prompt, answer).

    A prompt has at most as many tokens as bytes, whatever the tokenizer. Where a teacher reports
    more tokens than this, the report counts, and the budget can be exceeded by the difference.
    """
    prompt_bytes = len(request.prompt.encode())
    return prompt_bytes + TEMPLATE_TOKENS, request.parameters["max_tokens"]
