"""Conversations and preference pairs from the records of common data sets."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slmjax.errors import nearest
from slmjax.text.hashing import hash_words

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# Names of roles in common data sets; ShareGPT says "human" and "gpt", Gemma "model".
ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "prompter": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
# Fields that hold a list of turns, a question, or an answer. The first that a record has counts.
TURNS_FIELDS = ("messages", "conversations", "conversation", "dialogue")
QUESTION_FIELDS = ("prompt", "instruction", "question", "query")
ANSWER_FIELDS = ("response", "completion", "output", "answer")
# Fields that belong to the question: Alpaca's "input" follows it, passages go before it.
INPUT_FIELD, CONTEXT_FIELD = "input", "context"
SYSTEM_FIELDS = ("system", "system_prompt")
# Fields that may hold a transcript.
TRANSCRIPT_FIELDS = ("text", "transcript")
EXPECTED_DIALOGUE = (
    "expected messages, prompt and response, instruction and output, or text with Human: and "
    "Assistant:"
)
EXPECTED_PAIR = "expected chosen and rejected, and their prompt"
# "Human:" at the beginning of a line, as the Anthropic data has it, or "### Human:" anywhere.
_SPEAKER = re.compile(r"(?:(?:\A|\n)\s*|### ?)(?:### ?)?(Human|User|Assistant|System):[ \t]?")
SHOWN_FIELDS = 12  # names of a record's fields in a message; more are left out


class Turn(NamedTuple):
    """What one speaker says: role is "system", "user" or "assistant"."""

    role: str
    content: str


class PreferencePair(NamedTuple):
    """Two answers to one prompt, of which the first is preferred."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str


class BadConversation(ValueError):
    """A record that is no usable conversation or pair.

    Attributes:
      reason: a few words such as "no answer", the same for all faults of a kind: they are counted.
      detail: what is wrong with this record; "" where the reason says it all.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail


def dialogue_of(fields: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of a record, up to the last answer; contents have no blanks at their ends.

    A record has a list of turns (role and content, or from and value), a question and an answer in
    two fields, or one text with "Human:" and "Assistant:".

    Raises: BadConversation for a variant that is not known, and for a conversation without a
      question, without an answer, or with an empty turn.
    """
    turns = _turns_of(fields)
    # What follows the last answer teaches nothing.
    while turns and turns[-1].role != ASSISTANT:
        turns.pop()
    if not turns:
        raise BadConversation("no answer", "no turn of the assistant")
    _check_turns(turns)
    return tuple(turns)


def pair_of(fields: Mapping[str, Any]) -> PreferencePair:
    """Return the pair of a record: its prompt with any context, the chosen and the rejected answer.

    The prompt is a text, a transcript or a list of turns. Without a prompt, chosen and rejected are
    whole dialogues that agree up to their last answers. Next to a prompt, they may be lists of
    turns that repeat it.

    Raises: BadConversation as `dialogue_of`, where both answers are equal, and where they answer
      different prompts.
    """
    missing = [name for name in ("chosen", "rejected") if name not in fields]
    if missing:
        raise BadConversation("no pair", _missing(fields, missing[0], EXPECTED_PAIR))
    asked = _asked_turns(fields)
    chosen = _answer_turns(fields, "chosen", may_be_transcript=not asked)
    rejected = _answer_turns(fields, "rejected", may_be_transcript=not asked)
    prompt = asked
    # The dialogues hold the prompt: there is no field with it, or they repeat it.
    if not asked or len(chosen) > 1 or len(rejected) > 1:
        prompt = chosen[:-1]
        if rejected[:-1] != prompt:
            raise BadConversation("two prompts", "chosen and rejected answer different prompts")
        # The field may hold only one turn of the prompt, or no text at all.
        if asked and asked[-1].content and asked[-1] not in prompt:
            raise BadConversation("two prompts", "the prompt is no turn of chosen and rejected")
    prompt = _in_context(fields, prompt)
    _check_turns([*prompt, chosen[-1]])
    _check_turns([*prompt, rejected[-1]])
    if chosen[-1] == rejected[-1]:
        raise BadConversation("equal answers", "chosen and rejected are the same")
    return PreferencePair(tuple(prompt), chosen[-1].content, rejected[-1].content)


def prompt_group(fields: Mapping[str, Any], turns: Sequence[Turn]) -> str:
    """Return a name for the question that a conversation begins with.

    Conversations and pairs that ask the same words have the same name: case, punctuation, the
    system prompt and context do not count.
    """
    question = next(turn.content for turn in turns if turn.role == USER)
    context = _text(fields, CONTEXT_FIELD)
    # `_in_context` has put it before the question.
    if context and question != context:
        question = question.removeprefix(context)
    # Equal letters have several codes, such as one with an accent and two.
    question = unicodedata.normalize("NFKC", question)
    word_hashes, _, _ = hash_words(question)
    content = word_hashes.tobytes()
    # A question without letters and digits has no words: its characters count.
    if not content:
        content = question.strip().encode("utf-8", "surrogatepass")
    return f"prompt {hashlib.blake2b(content, digest_size=16).hexdigest()}"


def _turns_of(fields: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a record, not checked."""
    listed = _first_field(fields, TURNS_FIELDS)
    if listed and not isinstance(fields[listed], str):
        return [*_system_turns(fields), *_listed_turns(fields[listed], listed)]
    answer = _first_field(fields, ANSWER_FIELDS)
    question = _first_field(fields, QUESTION_FIELDS)
    if answer and question:
        asked = _in_context(fields, _asked_turns(fields))
        return [*asked, *_answer_turns(fields, answer)]
    for name in (*TRANSCRIPT_FIELDS, *TURNS_FIELDS):
        text = fields.get(name)
        turns = _transcript(text) if isinstance(text, str) else []
        if turns:
            return turns
    wanted = ANSWER_FIELDS if question else (*TURNS_FIELDS, *QUESTION_FIELDS)
    raise BadConversation("no conversation", _missing(fields, wanted[0], EXPECTED_DIALOGUE))


def _asked_turns(fields: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of the field that holds a question; none where no field does."""
    name = _first_field(fields, QUESTION_FIELDS)
    if not name:
        return []
    question = fields[name]
    if isinstance(question, str):
        turns = _transcript(question) or [Turn(USER, question.strip())]
    else:
        turns = _listed_turns(question, name)
    # An open "Assistant:" at the end of a transcript is what the answer fills.
    if turns and turns[-1] == Turn(ASSISTANT, ""):
        turns.pop()
    return turns


def _in_context(fields: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """Return turns with the record's system turn, and with its context around the last question."""
    # Some data sets have the system turn in a field and in their lists.
    system = [turn for turn in _system_turns(fields) if turn not in turns[:1]]
    before, after = _text(fields, CONTEXT_FIELD), _text(fields, INPUT_FIELD)
    turns = list(turns)
    places = [place for place, turn in enumerate(turns) if turn.role == USER]
    if places:
        last = turns[places[-1]]
        asked = [part for part in (last.content, after) if part]
        # A context alone asks nothing: the turn stays empty, which is refused.
        if before and asked:
            asked.insert(0, before)
        content = "\n\n".join(asked)
        turns[places[-1]] = last._replace(content=content)
    return [*system, *turns]


def _answer_turns(
    fields: Mapping[str, Any], name: str, *, may_be_transcript: bool = False
) -> list[Turn]:
    """Return the turns of a field with an answer, the answer last.

    Args:
      may_be_transcript: a text may hold a whole dialogue; otherwise it is one answer.
    Raises: BadConversation where the last turn is not the assistant's.
    """
    answer = fields[name]
    if isinstance(answer, str):
        turns = _transcript(answer) if may_be_transcript else []
        if not turns:
            turns = [Turn(ASSISTANT, answer.strip())]
    else:
        turns = _listed_turns(answer, name)
    if not turns or turns[-1].role != ASSISTANT:
        raise BadConversation("no answer", f"'{name}' does not end with a turn of the assistant")
    return turns


def _system_turns(fields: Mapping[str, Any]) -> list[Turn]:
    """Return the turn of the field that holds a system prompt; none where no field does."""
    name = _first_field(fields, SYSTEM_FIELDS)
    text = _text(fields, name) if name else ""
    return [Turn(SYSTEM, text)] if text else []


def _listed_turns(turns: Any, name: str) -> list[Turn]:
    """Return the turns of a list of objects.

    Args:
      name: of the field that holds the list, for messages.
    Raises: BadConversation where it is no list of objects, each with a known role and a text.
    """
    if not isinstance(turns, list | tuple):
        kind = type(turns).__name__
        raise BadConversation("malformed turns", f"'{name}' is {kind}, not a list of turns")
    listed = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            kind = type(turn).__name__
            raise BadConversation("malformed turns", f"turn {number} of '{name}' is {kind}")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            problem = f"turn {number} of '{name}' has the role {role!r}"
            known = ", ".join(ROLES)
            close = nearest(role, ROLES) if isinstance(role, str) else ""
            raise BadConversation("unknown role", f"{problem}; expected one of {known}.{close}")
        if not isinstance(content, str):
            kind = type(content).__name__
            problem = f"the content of turn {number} of '{name}' is {kind}, not a text"
            raise BadConversation("malformed turns", problem)
        listed.append(Turn(ROLES[role.lower()], content.strip()))
    return listed


def _transcript(text: str) -> list[Turn]:
    """Return the turns of "Human: ... Assistant: ..."; none where no speaker begins the text."""
    # What is before the first speaker, then each speaker and what follows it.
    pieces = _SPEAKER.split(text)
    # Text before the first speaker: this is no transcript.
    if len(pieces) < 3 or pieces[0].strip():
        return []
    turns = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        turns.append(Turn(ROLES[speaker.lower()], content.strip()))
    return turns


def _check_turns(turns: Sequence[Turn]) -> None:
    """Check that training on the turns makes sense.

    Raises: BadConversation for no question, an empty turn, or a system turn that is not the first.
    """
    if not any(turn.role == USER for turn in turns):
        raise BadConversation("no question", "no turn of the user")
    for number, turn in enumerate(turns, 1):
        if turn.role == SYSTEM and number > 1:
            raise BadConversation("late system turn", f"turn {number} is the system's")
        if not turn.content:
            raise BadConversation("empty turn", f"turn {number} ({turn.role}) says nothing")


def _first_field(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first of the names that a record has; "" for none."""
    return next((name for name in names if fields.get(name) is not None), "")


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return the text of a field that a record may have; "" without it.

    Raises: BadConversation for a value that is no text: leaving it out would change the question.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadConversation("malformed turns", f"'{name}' is {kind}, not a text")
    return value.strip()


def _missing(fields: Mapping[str, Any], wanted: str, expected: str) -> str:
    """Return a message with the fields of a record, what was expected, and the field nearest to it.

    Args:
      wanted: a field that the record lacks.
    """
    names = [str(name) for name in fields]
    listed = ", ".join(names[:SHOWN_FIELDS])
    return f"fields: {listed}; {expected}.{nearest(wanted, names)}"
