"""Documents of conversations and of preference pairs: their parts, their size and their group."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slmjax.text.chat_template import Part, dialogue_parts, pair_parts
from slmjax.text.conversations import ASSISTANT, BadConversation, dialogue_of, pair_of, prompt_group
from slmjax.text.document_checks import checked_document, grouping
from slmjax.text.records import CHAT, Document, Fault, Record, Source
from slmjax.text.tokenizer import Special

# Version of the template, and of how records are read and held out. It goes up when one of them
# changes, so that conversations are prepared again.
CHAT_FORMAT = 3
# config.data.group is for running text: conversations are grouped by their questions.
_NO_GROUPING = grouping("")


def chat_document(record: Record, source: Source) -> Document | Fault:
    """Return the document of a record of a source of kind "chat" or "pairs".

    Its text is the contents of all turns, its bytes are those of the answers, and its group is the
    question: a question that is held out in one source is held out in all. A record that is no
    conversation becomes a fault.
    """
    fields = record.fields
    try:
        if source.kind == CHAT:
            turns = dialogue_of(fields)
            answers = [turn.content for turn in turns if turn.role == ASSISTANT]
            parts = dialogue_parts(turns)
            contents = [turn.content for turn in turns]
        else:
            pair = pair_of(fields)
            turns = pair.prompt
            answers = [pair.chosen, pair.rejected]
            parts = pair_parts(pair)
            contents = [turn.content for turn in turns] + answers
    except BadConversation as error:
        return Fault(record.line, error.reason, error.detail)
    document = checked_document("\n\n".join(contents), fields, record.line, _NO_GROUPING, source)
    if isinstance(document, Fault):
        return document
    size = sum(len(answer.encode()) for answer in answers)
    group = prompt_group(fields, turns)
    return replace(document, bytes=size, group=group, parts=tuple(parts))


def parts_to_json(parts: Sequence[Part]) -> list[Any]:
    """Return parts as JSON holds them: a text as it is, a special token as {"special": name}."""
    stored: list[Any] = []
    for part in parts:
        if isinstance(part, Special):
            stored.append({"special": part.name})
        else:
            stored.append(part)
    return stored


def parts_from_json(stored: Sequence[Any]) -> list[Part]:
    """Return the parts that `parts_to_json` has stored."""
    parts: list[Part] = []
    for part in stored:
        if isinstance(part, str):
            parts.append(part)
        else:
            parts.append(Special(part["special"]))
    return parts
