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
      texts: of the documents.
      parts: of each, texts and special tokens in order; None for running text, whose ids follow
        from its text.
    """
    running = [text for text, own in zip(texts, parts, strict=True) if own is None]
    encoded = tokenizer.encode_arrays(running)
    for own in parts:
        if own is None:
            yield next(encoded)
        else:
            yield np.array(tokenizer.sequence(*own))
