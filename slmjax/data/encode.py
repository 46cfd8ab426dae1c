"""Token ids of documents of every kind."""

from collections.abc import Iterator, Sequence

import numpy as np

from slmjax.text.chat_template import Part
from slmjax.text.tokenizer import Tokenizer


def encode_documents(
    tokenizer: Tokenizer, texts: Sequence[str], parts: Sequence[Sequence[Part] | None]
) -> Iterator[np.ndarray]:
    """Yield the ids of each document, without its leading end-of-text.

    Args:
      texts: one for each document; those of dialogues and pairs are not read.
      parts: for each dialogue and pair its texts and special tokens in order; None for running
        text.
    """
    running_texts = []
    for text, document_parts in zip(texts, parts, strict=True):
        if document_parts is None:
            running_texts.append(text)
    # One batch, which is faster than one text after the other.
    encoded = tokenizer.encode_arrays(running_texts)
    for document_parts in parts:
        if document_parts is None:
            yield next(encoded)
        else:
            yield np.array(tokenizer.sequence(*document_parts))
