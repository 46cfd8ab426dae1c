"""The best model that this machine trains in some minutes, on your text or the embedded textbook.

python -m slmjax.launch --config=configs/minutes.py:10
python -m slmjax.launch --config=configs/minutes.py:10 --config.data.sources=~/texts

The minutes count from the command to the report. The time in which the text is prepared comes on
top, once. The launcher measures the machine, and chooses vocabulary, size, batch and steps. It
prints what it chose and why; config.json keeps it.
--params=SIZE sets the size; then only the rest is chosen.
The rate is that of configs/tiny.py at that recipe's shape; for another size it follows by the rule
of --params.
"""

from pathlib import Path

from slmjax import config

TINY = Path(__file__).parent / "tiny.py"


def get_config(minutes="10"):
    # Its shape is the base from which rates transfer; the model gets another one.
    c = config.load_recipe(str(TINY))
    c.train.minutes = float(minutes)
    # 0 lets the minutes choose.
    c.data.vocab_size, c.data.seq_len = 0, 0
    c.train.steps, c.train.batch, c.train.warmup = 0, 0, 0
    # A step's decay stays as it is where --config.train.lr sets another rate.
    c.train.decay_lr = c.train.lr
    c.eval.every, c.eval.tokens = 0, 20_000
    c.checkpoint.every = 2000
    return c
