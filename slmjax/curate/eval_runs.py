"""The arrays of an index of evaluation sets: which short runs of words point to which passages."""

import numpy as np
from jaxtyping import Bool, Int, UInt64

from slmjax.curate.eval_items import EvalSets, Passages, WordPlaces, read_passages
from slmjax.text.hashing import hash_runs

RUN = 5  # words in a run that points to passages
TELLING = 2  # least words of such a run that are no names, numbers or single letters
# Most items that a run may point to; one in more is a template ("which of the following is").
COMMON = 64
# Least words that must agree, without names, numbers and templates. It is GPT-3's length of an
# overlap: shorter ones are common phrases.
LEAST = 13


RunHashes = UInt64[np.ndarray, " runs"]
RunPlaces = Int[np.ndarray, " runs"]  # where a run begins in the row of words


def index_arrays(sets: EvalSets) -> dict[str, np.ndarray]:
    """Return the arrays of the index of evaluation sets, see `decontaminate.build_index`.

    An item is one number: its set's position in the upper 32 bits, its line in the lower ones.

    Returns:
      words: [words] hashes of the words of all passages, end to end.
      names: [words] which of them are names.
      counts: [words] which of them count towards the words that must agree: telling words in a run
        that few items hold.
      offsets: [passages + 1] where each passage begins in `words`, and the end of the last one.
      item: [passages] the item that each passage belongs to.
      runs: [runs] hashes of the runs, ascending.
      first, at: [runs + 1] and [pointers]. The run i begins at words at[first[i] : first[i + 1]].
      sets: [sets] names.
      items: [sets] how many items each set has.
      undecided: items without a passage that can be looked for.
    """
    passages = read_passages(sets, LEAST)
    lengths = np.diff(passages.offsets)
    passage_of = np.repeat(np.arange(len(lengths)), lengths)
    set_of_text, line_of_text, text_passages = passages.origins.T
    text_items = (set_of_text << 32) + line_of_text
    # A passage belongs to the item of the first text with its words. Texts without a passage have
    # -1. One more -1 in front makes sure that it is the first value, which is left out; it moves
    # all indices by one.
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
    keep_passage = (counted >= LEAST) & (texts_alike <= COMMON)
    keep_word = keep_passage[passage_of]
    new_place = np.cumsum(keep_word) - 1
    keep_run = keep_word[at]
    kept_runs = runs[keep_run]
    kept_at = new_place[at[keep_run]]
    unique_runs, first = np.unique(kept_runs, return_index=True)
    set_of_item = np.unique(text_items) >> 32
    # The False at the end is for texts without a passage: their -1 is its index.
    is_decided = np.append(keep_passage, False)[text_passages]
    return {
        "words": passages.words[keep_word],
        "names": passages.names[keep_word],
        "counts": counts[keep_word],
        "offsets": np.cumsum(np.append(0, lengths[keep_passage])),
        "item": passage_items[keep_passage],
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
    """Return the runs of RUN words that at most COMMON items hold.

    Runs across two passages and those with few telling words are left out. Returned are a hash for
    each occurrence of a run, ascending, and where it begins.

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
    number = np.cumsum(_changes(runs[at])) - 1
    item = items[passage_of[at]]
    order = np.lexsort((item, number))
    sorted_number, sorted_item = number[order], item[order]
    is_new_item = _changes(sorted_number) | _changes(sorted_item)
    item_counts = np.bincount(sorted_number[is_new_item])
    is_rare = item_counts <= COMMON
    at = at[is_rare[number]]
    return runs[at], at


def _changes(values: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Return where a value differs from the one before; the first one does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
