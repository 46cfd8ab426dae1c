"""Dialogues and preference pairs in a curation: they are kept as they came, or dropped.

The quality of running text is no measure for them, and answers to one question, or to questions
about one passage, are similar without being copies. So they are only searched for evaluation items,
and only an equal one is a duplicate.
"""

import hashlib
import json

from slmjax.text.conversations import dialogue_of, pair_of
from slmjax.text.records import CHAT, PAIRS, Document, content_key

# Shingles of the text that stands for a conversation in a sketch. Each has 32 bits, so that no two
# conversations have one in common but by chance, and never most of them.
SHINGLES = 8


def searched_texts(document: Document, kind: str) -> list[str]:
    """Return the texts in which evaluation items are looked for: one for each dialogue.

    A pair has two dialogues. An item with its question in the prompt and its answer in the chosen
    or in the rejected answer is in one piece in one of them.

    Args:
      document: as `chat_document` returns it.
      kind: of its source, CHAT or PAIRS.
    """
    if kind != PAIRS:
        return [document.text]
    pair = pair_of(document.record or {})
    prompt = [turn.content for turn in pair.prompt]
    return ["\n\n".join([*prompt, answer]) for answer in (pair.chosen, pair.rejected)]


def stand_in(document: Document, kind: str, ngram: int) -> Document:
    """Return a document to be sketched instead of a conversation, similar to equal ones only.

    Equal are conversations with the same turns, and pairs with the same prompt, chosen and rejected
    answer, whatever else their records hold and whatever their variant.

    Args:
      kind: of its source, CHAT or PAIRS.
      ngram: words of a shingle.
    """
    record = document.record or {}
    # Not the parts of the chat template: an index of earlier batches outlives a change of it.
    turns = dialogue_of(record) if kind == CHAT else pair_of(record)
    content = json.dumps([kind, turns]).encode()
    name = hashlib.blake2b(content, digest_size=16).hexdigest()
    words = [f"{name}{number}" for number in range(ngram + SHINGLES - 1)]
    return Document(" ".join(words), "", document.line, document.bytes, content_key(content))
