"""Dialogues and preference pairs in a curation: they are kept as they came, or dropped.

Rules about running text do not apply to them. Answers to one question, or to questions about one
passage, are similar without being copies. So dialogues and pairs are only searched for evaluation
items, and only equal ones are duplicates.
"""

import hashlib
import json

from slmjax.text.conversations import dialogue_of, pair_of
from slmjax.text.records import CHAT, PAIRS, Document, content_key

# Shingles of a `stand_in`. A shingle has 32 bits, so two conversations may have one in common by
# chance, but never most of them.
SHINGLES = 8


def searched_texts(document: Document, kind: str) -> list[str]:
    """Return the texts in which evaluation items are looked for: one for each dialogue.

    A pair has two: the prompt with the chosen answer, and the prompt with the rejected one. So an
    item whose answer is one of them is found in one piece.

    Args:
      document: as `chat_document` returns it.
      kind: of its source, CHAT or PAIRS.
    """
    if kind != PAIRS:
        return [document.text]
    pair = pair_of(document.record or {})
    prompt = [turn.content for turn in pair.prompt]
    chosen = "\n\n".join([*prompt, pair.chosen])
    rejected = "\n\n".join([*prompt, pair.rejected])
    return [chosen, rejected]


def stand_in(document: Document, kind: str, ngram: int) -> Document:
    """Return a document to sketch instead of a conversation: only equal ones have similar sketches.

    Dialogues are equal if their turns are, pairs if their prompt and both answers are, whatever
    else the records hold and in whatever variant.

    Args:
      kind: of its source, CHAT or PAIRS.
      ngram: words of a shingle.
    """
    record = document.record or {}
    # Not the parts of the chat template: if it changes, an index of earlier batches stays valid.
    conversation = dialogue_of(record) if kind == CHAT else pair_of(record)
    content = json.dumps([kind, conversation]).encode()
    name = hashlib.blake2b(content, digest_size=16).hexdigest()
    # Words of its own, as many as make SHINGLES shingles.
    words = [f"{name}{number}" for number in range(ngram + SHINGLES - 1)]
    return Document(" ".join(words), "", document.line, document.bytes, content_key(content))
