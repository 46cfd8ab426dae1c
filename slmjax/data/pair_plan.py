"""Batches of preference pairs: the fields of text, and which tokens belong to which pair."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.data.answer_mask import numbered_segments
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.rows import Arrays, Field, Fields
from slmjax.errors import UserError, nearest
from slmjax.text.records import PAIRS

# Tokens of the chosen dialogue whose loss is the NLL: those of its answer, or all.
NLL_ON = ("chosen", "sequence")
# What the NLL is a mean over: all those tokens, or the means of the pairs.
NLL_REDUCTIONS = ("token", "sequence")


class PairPlan(BatchPlan):
    """A BatchPlan whose batches have what `tasks.orpo` needs of pairs besides the fields of text.

    answers [B,T] float32: 1 where the target belongs to an answer of a pair, chosen or rejected.
    pairs [B,P] float32: 1 for each pair of a row. Pair i has the segments 2i + 1 (chosen) and
      2i + 2 (rejected). P is the most pairs of any row.
    weights [B,T] float32: of the NLL (negative log-likelihood). Rejected dialogues have none; rows
      of running text and of dialogues keep theirs.

    Args:
      nll_on: "chosen" (the chosen answer) or "sequence" (the chosen dialogue with its prompt).
      nll_reduction: "token", or "sequence": each pair's tokens have weights that add up to 1.
      plan: as BatchPlan.
    Raises: UserError where no source has pairs, and for "sequence" next to sources of other kinds.
    """

    def __init__(self, *, nll_on: str = "chosen", nll_reduction: str = "token", **plan: Any):
        check_nll(nll_on, nll_reduction)
        super().__init__(**plan)
        self.nll_on, self.nll_reduction = nll_on, nll_reduction
        self.max_pairs = 0
        for shards, rows in zip(self.train.values(), self.row_plans, strict=True):
            if shards.kind == PAIRS:
                self.max_pairs = max(self.max_pairs, rows.max_segments // 2)
        others = [name for name, shards in self.train.items() if shards.kind != PAIRS]
        if others and nll_reduction == "sequence":
            raise UserError(
                "config.task: with nll_reduction=sequence all tokens of a pair would count as much "
                f"as one token of '{others[0]}'; use nll_reduction=token, or pairs alone."
            )
        if not self.max_pairs:
            raise UserError(
                "config.task is 'orpo', but no source of data.sources with a weight has "
                "kind='pairs'."
            )

    def fingerprint(self, step: int) -> str:
        """See Rows."""
        parts = [super().fingerprint(step)]
        # Before step 0 nothing has been read, so any plan may begin there.
        if step:
            parts += [self.nll_on, self.nll_reduction]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        fields = dict(super().shapes(step))
        tokens = (self.batch, self.seq_len)
        pairs = (self.batch, self.max_pairs)
        fields["answers"] = Field(tokens, "float32", ("batch", None))
        fields["pairs"] = Field(pairs, "float32", ("batch", None))
        return fields

    def unpack(self, compact: Mapping[str, np.ndarray]) -> Arrays:
        """See Rows."""
        arrays = super().unpack(compact)
        segments = arrays["segments"]
        # `fold` leaves it out where all rows are running text.
        is_pairs = compact.get("is_pairs", np.zeros(len(segments), bool))
        # `unfold` has given weight to the answers of both dialogues of a pair.
        answers = np.where(is_pairs[:, None], arrays["weights"], 0)
        # A row of segments 1 to 2n has n pairs.
        counts = np.where(is_pairs, segments.max(1) // 2, 0)
        pairs = np.arange(self.max_pairs) < counts[:, None]
        arrays["answers"] = answers.astype(np.float32)
        arrays["pairs"] = pairs.astype(np.float32)
        arrays["weights"] = self._nll_weights(arrays, is_pairs)
        return arrays

    def _nll_weights(self, arrays: Arrays, is_pairs: np.ndarray) -> np.ndarray:
        """Return the weights of the NLL, [rows,T] float32."""
        weights, segments = arrays["weights"], arrays["segments"]
        if self.nll_on == "sequence":
            # All of the dialogue but its last token, whose target belongs to the next document.
            last = np.ones_like(segments, bool)
            last[:, :-1] = segments[:, :-1] != segments[:, 1:]
            pair_weights = ((segments > 0) & ~last).astype(np.float32)
        else:
            pair_weights = weights
        # The rejected dialogues are the even segments.
        pair_weights = pair_weights * (segments % 2)
        if self.nll_reduction == "sequence":
            pair_weights = pair_weights / _segment_totals(pair_weights, segments)
        return np.where(is_pairs[:, None], pair_weights, weights).astype(np.float32)


def _segment_totals(weights: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return for each token the sum of the weights of its segment in its row; 1 where it is 0."""
    numbers, count = numbered_segments(segments)
    sums = np.bincount(numbers.ravel(), weights.ravel(), count)
    return np.where(sums > 0, sums, 1)[numbers]


def check_nll(nll_on: str, nll_reduction: str) -> None:
    """Raises: UserError for options of the NLL that PairPlan does not know."""
    _check_choice("nll_on", nll_on, NLL_ON)
    _check_choice("nll_reduction", nll_reduction, NLL_REDUCTIONS)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a UserError where an option of config.task has none of its values."""
    if value not in choices:
        raise UserError(
            f"config.task: {option} is '{value}'; expected one of {', '.join(choices)}."
            f"{nearest(str(value), choices)}"
        )
