"""Which tokens of a dialogue its assistant says: a function of the token ids alone."""

import numpy as np
from jaxtyping import Bool, Int

from slmjax.text.chat_template import ChatIds


def answer_mask(tokens: Int[np.ndarray, "B T"], ids: ChatIds) -> Bool[np.ndarray, "B T"]:
    """Return which tokens the assistant says: behind `<|im_start|>assistant\\n` up to `<|im_end|>`.

    The end of the turn is among them, so that a model learns to stop. What a calculator writes,
    behind `<|result|>` up to `<|/calc|>`, is not. Contents hold no special ids, so the mask needs
    no text. Every dialogue of a row begins with the end-of-text id.
    """
    flat = tokens.reshape(-1)
    places = np.arange(flat.size)
    starts = flat == ids.start
    # Where the header of an answer follows.
    begins_answer = starts.copy()
    for offset, header_id in enumerate(ids.answer, 1):
        begins_answer[:-offset] &= flat[offset:] == header_id
        begins_answer[-offset:] = False
    # The latest of: a turn begins, a turn has ended, a document begins.
    after_end = np.zeros(flat.size, bool)
    after_end[1:] = flat[:-1] == ids.end
    latest = _latest(places, starts | after_end | (flat == ids.eot))
    content_begins = latest + 1 + len(ids.answer)
    is_answer = begins_answer[latest] & (places >= content_begins)
    if ids.result >= 0:
        # The latest of: a result begins, a result has ended, a document begins.
        result_begins, result_ended = np.zeros(flat.size, bool), np.zeros(flat.size, bool)
        result_begins[1:] = flat[:-1] == ids.result
        result_ended[1:] = flat[:-1] == ids.result_end
        latest = _latest(places, result_begins | result_ended | (flat == ids.eot))
        is_answer &= ~result_begins[latest]
    return is_answer.reshape(tokens.shape)


def last_turn(
    tokens: Int[np.ndarray, "B T"], segments: Int[np.ndarray, "B T"], ids: ChatIds
) -> Bool[np.ndarray, "B T"]:
    """Return which tokens belong to the last turn of their segment; padding is segment 0."""
    rows, _ = tokens.shape
    width = int(segments.max(initial=0)) + 1
    # A number for each segment of each row.
    number = segments + width * np.arange(rows)[:, None]
    places = np.arange(tokens.size).reshape(tokens.shape)
    is_start = tokens == ids.start
    last_start = np.full(rows * width, tokens.size)
    # Ascending, so that the last start of a segment stays.
    last_start[number[is_start]] = places[is_start]
    return places >= last_start[number]


def next_is(mask: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """Return where the next token is in the mask: there the model predicts it."""
    following = np.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    return following


def complete_turns(tokens: Int[np.ndarray, "T"], ids: ChatIds, most: int) -> int:
    """Return how many of the first `most` tokens of a dialogue are whole turns, answers at the end.

    0 where no answer ends among them.
    """
    ends = answer_mask(tokens[None, :], ids)[0] & (tokens == ids.end)
    # The line feed behind the end belongs to the turn.
    lengths = np.flatnonzero(ends) + 2
    fitting = lengths[lengths <= most]
    return int(fitting[-1]) if len(fitting) else 0


def _latest(places: Int[np.ndarray, "N"], events: Bool[np.ndarray, "N"]) -> np.ndarray:
    """Return the last place at or before each where something happens; 0 where nothing has."""
    return np.maximum.accumulate(np.where(events, places, 0))
