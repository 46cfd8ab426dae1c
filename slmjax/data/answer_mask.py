"""Which tokens of a dialogue its assistant says: a function of the token ids alone."""

import numpy as np
from jaxtyping import Bool, Int

from slmjax.text.chat_template import ChatIds


def answer_mask(tokens: Int[np.ndarray, "B T"], ids: ChatIds) -> Bool[np.ndarray, "B T"]:
    """Return which tokens the assistant says: behind `<|im_start|>assistant\\n` up to `<|im_end|>`.

    The end of the turn is among them, so that a model learns to stop. What a calculator writes,
    behind `<|result|>` up to `<|/calc|>`, is not. Contents hold no special ids, so the mask needs
    no text.

    Args:
      tokens: rows of dialogues, each of which begins with the end-of-text id.
    """
    # All rows end to end: the end-of-text that begins a row also ends the turn before it.
    flat = tokens.reshape(-1)
    places = np.arange(flat.size)
    starts = flat == ids.start
    # Where a turn of the assistant starts: its header follows.
    begins_answer = starts.copy()
    for offset, header_id in enumerate(ids.answer, 1):
        begins_answer[:-offset] &= flat[offset:] == header_id
        begins_answer[-offset:] = False
    after_end = np.zeros(flat.size, bool)
    after_end[1:] = flat[:-1] == ids.end
    # Which of these came last: a turn starts, a turn has ended, a document begins.
    latest = _latest(places, starts | after_end | (flat == ids.eot))
    content_begins = latest + 1 + len(ids.answer)
    is_answer = begins_answer[latest] & (places >= content_begins)
    if ids.result >= 0:
        result_begins = np.zeros(flat.size, bool)
        result_begins[1:] = flat[:-1] == ids.result
        result_ended = np.zeros(flat.size, bool)
        result_ended[1:] = flat[:-1] == ids.result_end
        # Which of these came last: a result begins, a result has ended, a document begins.
        latest = _latest(places, result_begins | result_ended | (flat == ids.eot))
        is_answer &= ~result_begins[latest]
    return is_answer.reshape(tokens.shape)


def last_turn(
    tokens: Int[np.ndarray, "B T"], segments: Int[np.ndarray, "B T"], ids: ChatIds
) -> Bool[np.ndarray, "B T"]:
    """Return which tokens belong to the last turn of their segment; padding is segment 0."""
    number, count = numbered_segments(segments)
    places = np.arange(tokens.size).reshape(tokens.shape)
    is_start = tokens == ids.start
    # Where a segment has no turn: behind all tokens.
    last_start = np.full(count, tokens.size)
    # Ascending, so that the last start of a segment stays.
    last_start[number[is_start]] = places[is_start]
    return places >= last_start[number]


def numbered_segments(segments: Int[np.ndarray, "B T"]) -> tuple[Int[np.ndarray, "B T"], int]:
    """Return (a number for each token's segment that no other row has, how many numbers)."""
    rows, _ = segments.shape
    width = int(segments.max(initial=0)) + 1
    return segments + width * np.arange(rows)[:, None], rows * width


def next_is(mask: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
    """Return where the next token is in the mask: there the model predicts it."""
    following = np.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    return following


def complete_turns(tokens: Int[np.ndarray, "T"], ids: ChatIds, most: int) -> int:
    """Return where to cut a dialogue: behind its last answer that ends within `most` tokens.

    The result is a number of tokens; 0 where no answer fits.
    """
    ends = answer_mask(tokens[None, :], ids)[0] & (tokens == ids.end)
    # The first i + 1 tokens have the end at index i; the line feed behind it belongs to the turn.
    lengths = np.flatnonzero(ends) + 2
    fitting = lengths[lengths <= most]
    return int(fitting[-1]) if len(fitting) else 0


def _latest(places: Int[np.ndarray, "N"], events: Bool[np.ndarray, "N"]) -> np.ndarray:
    """Return the last place of an event at or before each place; 0 where there was none."""
    return np.maximum.accumulate(np.where(events, places, 0))
