"""Batch and warmup of a ladder's runs: they follow the tokens, not the size of the model."""

from typing import NamedTuple

from slmjax.errors import UserError

# The rule of OLMo-core's ladder, whose runs have 20 tokens a parameter: 160 rows of 2048 tokens at
# 108M parameters, the batch growing with the power 2/3 of the size. In tokens of the run:
BATCH_TOKENS = 160 * 2048
AT_TOKENS = 20 * 108e6
POWER = 2 / 3
# The same ladder warms up over as many tokens as the model has parameters: a twentieth of the run.
WARMUP_SHARE = 1 / 20


class LadderBatch(NamedTuple):
    """How long a run of the ladder is, in steps."""

    steps: int
    rows: int  # of a batch, on all devices
    warmup: int  # steps

    def tokens(self, seq_len: int) -> int:
        """Return the tokens of the run, after rounding."""
        return self.steps * self.rows * seq_len


def ladder_batch(tokens: float, seq_len: int, *, multiple: int = 1) -> LadderBatch:
    """Return steps, batch and warmup of a run with that many tokens, equal for all sizes.

    Rows are rounded to the nearest multiple, at least one; then steps to the nearest whole number,
    so that the run has `tokens` up to half a batch; then warmup, at least one step.

    Args:
      tokens: of the whole run.
      seq_len: tokens of a row.
      multiple: rows come in multiples of it, such as the number of devices.
    Source: OLMo-core's model ladder (Ai2), with its sizes turned into tokens.
    Raises: UserError for less than one batch.
    """
    if seq_len < 1 or multiple < 1:
        raise UserError(f"seq_len={seq_len} and multiple={multiple}: expected 1 or more.")
    batch_tokens = BATCH_TOKENS * (max(tokens, 0) / AT_TOKENS) ** POWER
    rows = multiple * max(1, round(batch_tokens / seq_len / multiple))
    steps = round(tokens / (rows * seq_len))
    if steps < 1:
        raise UserError(
            f"{tokens:,.0f} tokens are less than one batch of {rows} rows with {seq_len} tokens."
        )
    return LadderBatch(steps, rows, max(1, round(WARMUP_SHARE * steps)))
