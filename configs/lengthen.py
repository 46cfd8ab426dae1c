"""Longer rows for a trained run: a last part of training in which positions are stretched.

python -m slmjax.launch --config=configs/lengthen.py --init_from=runs/tiny --workdir=runs/long

Words after a colon, with commas between them, choose how and how far:
configs/lengthen.py:base,4096

  yarn   slow positions are slowed down by the ratio of the lengths (YaRN); the default
  base   a higher base of the rotary embedding (ABF)
  none   positions as they are, for models whose layers without a window have none (rope=False)
  4096   tokens of a row; four times the parent's unless given

Only layers without a window change. A step has about as many tokens as the parent's, in whole rows;
there are a tenth as many steps, from half of the parent's peak rate to zero. The text is the
parent's.
Sources: Peng et al. 2023 (YaRN); Xiong et al. 2023 (ABF), with the base's power of bloc97's
NTK-aware scaling; the share of the steps is that of Marin's lengthened runs.
"""

from slmjax.errors import UserError

EXPECTED = "expected yarn, base or none, then tokens of a row such as 4096"
SHARE_OF_STEPS, SHARE_OF_RATE = 0.1, 0.5
FEWEST_STEPS = 20


def get_config(words="yarn", *, trunk):
    c = trunk
    trained = c.data.seq_len
    arm, length = read_words(words, 4 * trained)
    if length <= trained:
        raise UserError(f"configs/lengthen.py: {length} tokens; the run has rows of {trained}.")
    if c.model.rope_scaling and arm != "none":
        raise UserError(
            f"configs/lengthen.py: the run's positions are scaled already "
            f"({c.model.rope_scaling}); begin from the run before it."
        )
    factor = length / trained
    if arm == "yarn":
        c.model.rope_scaling = f"yarn factor={factor:g} trained={trained}"
    elif arm == "base":
        pairs = c.model.head_dim / (c.model.head_dim - 2)
        c.model.rope_scaling = f"theta={c.model.rope_theta * factor**pairs:.6g}"
    c.data.seq_len = length
    c.train.batch = max(1, round(c.train.batch * trained / length))
    c.train.microbatches = min(c.train.microbatches, c.train.batch)
    c.train.steps = max(FEWEST_STEPS, round(SHARE_OF_STEPS * c.train.steps))
    c.train.lr = SHARE_OF_RATE * c.train.lr
    c.train.schedule, c.train.warmup, c.train.decay = "wsd", c.train.steps // 20, 0.9
    # What chose the parent's steps, or cut them into parts, does not hold here.
    c.data.phases, c.train.minutes, c.train.chosen, c.train.branch = (), 0.0, (), False
    c.eval.every = c.checkpoint.every = max(1, c.train.steps // 2)
    return c


def read_words(words, length):
    """Return (arm, tokens of a row)."""
    arm, *rest = words.split(",")
    try:
        if arm not in ("yarn", "base", "none") or len(rest) > 1:
            raise ValueError
        return arm, int(rest[0]) if rest else length
    except ValueError:
        raise UserError(f"--config=configs/lengthen.py:{words}: {EXPECTED}.") from None
