"""Which short runs of words point to which passages of evaluation sets: the arrays of an index."""

import numpy as np
from jaxtyping import Bool, Int, UInt64

from slmjax.curate.eval_items import EvalSets, Passages, WordPlaces, read_passages
from slmjax.text.hashing import hash_runs

RUN = 5  # words that point to an item
TELLING = 2  # of them at least so many that are no names, numbers or single letters
# A run that is in more items than this is a template ("which of the following is").
COMMON = 64
# Words that must agree (no names, numbers or template); GPT-3's length of an overlap: shorter ones
# are common phrases.
LEAST = 13


RunHashes = UInt64[np.ndarray, " runs"]
RunPlaces = Int[np.ndarray, " runs"]  # where a run begins in the row of words


def index_arrays(sets: EvalSets) -> dict[str, np.ndarray]:
    """Return the arrays of the index of evaluation sets, see `decontaminate.build_index`.

    An item is its set's position and, in the lower 32 bits, its line. Returned are:
      words, names, counts: [words] of all passages end to end: hashes, which are names, and which
        count because a rare run holds them.
      offsets: [passages + 1] where each passage begins; item: [passages] whose it is.
      runs: [runs] hashes, ascending; first: [runs + 1] and at: [pointers], the run i begins at the
        words at[first[i] : first[i + 1]].
      sets: [sets] names; items: [sets] how many items each has.
      undecided: items without a passage that can be looked for.
    """
    passages = read_passages(sets, LEAST)
    lengths = np.diff(passages.offsets)
    passage_of = np.repeat(np.arange(len(lengths)), lengths)
    set_of_text, line_of_text, text_passages = passages.origins.T
    text_items = (set_of_text << 32) + line_of_text
    # A passage belongs to the item of the first text that reads so. The -1 in front makes sure that
    # there is a value of short texts, the first one, to leave out.
    _, first_text = np.unique(np.append(-1, text_passages), return_index=True)
    passage_items = text_items[first_text[1:] - 1]
    runs, at = _rare_runs(passages, passage_of, passage_items)
    # Words count where a rare run holds them.
    counts = np.zeros(len(passages.words), bool)
    for k in range(RUN):
        counts[at + k] = True
    counts &= passages.telling

    # Passages with too few words that count, or that too many texts share, are left out.
    texts_alike = np.bincount(text_passages + 1, minlength=1)[1:]
    counted = np.bincount(passage_of, counts, len(lengths))
    enough = (counted >= LEAST) & (texts_alike <= COMMON)
    keep = enough[passage_of]
    new_place = np.cumsum(keep) - 1
    keep_run = keep[at]
    kept_runs = runs[keep_run]
    kept_at = new_place[at[keep_run]]
    unique_runs, first = np.unique(kept_runs, return_index=True)
    set_of_item = np.unique(text_items) >> 32
    # The value at the end is that of short texts, whose passage is -1.
    is_decided = np.append(enough, False)[text_passages]
    return {
        "words": passages.words[keep],
        "names": passages.names[keep],
        "counts": counts[keep],
        "offsets": np.cumsum(np.append(0, lengths[enough])),
        "item": passage_items[enough],
        "runs": unique_runs,
        "first": np.append(first, len(kept_at)),
        "at": kept_at.astype(np.int32),
        "sets": np.array(list(sets), np.str_),
        "items": np.bincount(set_of_item, minlength=len(sets)),
        "undecided": np.setdiff1d(text_items, text_items[is_decided]),
    }


def _rare_runs(
    passages: Passages, passage_of: WordPlaces, items: Int[np.ndarray, " passages"]
) -> tuple[RunHashes, RunPlaces]:
    """Return the runs of RUN words that at most COMMON items hold: hashes, ascending, and places.

    Args:
      passage_of: the passage of each word.
      items: the item of each passage.
    """
    runs = hash_runs(passages.words, RUN)
    telling_before = np.append(0, np.cumsum(passages.telling))
    telling_inside = telling_before[RUN:] - telling_before[:-RUN]
    in_one_passage = passage_of[RUN - 1 :] == passage_of[: len(runs)]
    at = np.flatnonzero(in_one_passage & (telling_inside >= TELLING))
    order = np.argsort(runs[at], kind="stable")
    at = at[order]
    # Number the different runs, and count the different items of each.
    kind = np.cumsum(_changes(runs[at])) - 1
    item = items[passage_of[at]]
    order = np.lexsort((item, kind))
    kind_in_order, item_in_order = kind[order], item[order]
    is_new_item = _changes(kind_in_order) | _changes(item_in_order)
    items_of_kind = np.bincount(kind_in_order[is_new_item])
    is_rare = items_of_kind <= COMMON
    at = at[is_rare[kind]]
    return runs[at], at


def _changes(values: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Return where a value differs from the one before; the first one does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
