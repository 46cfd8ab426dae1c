r"""What will a larger model's loss be? A ladder of small ones says so before it is trained.

python -m slmjax.launch --config=configs/studies/forecast.py:toy --workdir=runs/forecast-toy
python -m slmjax.launch --config=configs/studies/forecast.py:classroom --workdir=runs/classroom
python -m slmjax.launch --config=configs/studies/forecast.py --workdir=runs/forecast \
    --config.data.sources=web=~/web
python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook \
    --config.synthesize.documents=96000
python -m slmjax.launch --config=configs/studies/forecast.py:100m-tokens --workdir=runs/to-300m

toy: 0.1M to 0.4M parameters on the embedded textbook, for a CPU.
classroom: 5M to 20M parameters forecast 100M, each with 30M tokens of the text of configs/30m.py.
Without an argument: 10M, 50M and 100M parameters forecast 300M, each with 1B tokens of a text of
your own. With three sizes no interval is possible; --config.forecast.sizes=5m,10m,20m,50m,100m
gives one.
100m-tokens: 5M, 10M and 20M (two seeds each), 50M and 100M parameters forecast 300M. All read the
same 100M tokens, each token once: the six domains of configs/30m.py, filled up with the textbook of
the command before it. The loss is the mean over the six domains of bits per byte of their real
held-out text; the textbook is not scored.

Each ends with the command that trains the target, and with the one that scores the forecast.
The rates are those of configs/10m.py (configs/tiny.py for the toy); --config.train.lr changes them
for all sizes. Batch and warmup follow the tokens, and are the same for all.
Score: not yet measured.
"""

from pathlib import Path

from slmjax import config

CONFIGS = Path(__file__).parents[1]


def get_config(part="own"):
    if part not in ("toy", "classroom", "100m-tokens", "own"):
        raise ValueError(f"There is no part '{part}'; there is toy, classroom and 100m-tokens.")
    c = config.load_recipe(str(CONFIGS / ("tiny.py" if part == "toy" else "10m.py")))
    c.stage = "forecast"
    if part == "toy":
        c.data.sources = {"text": {"path": "textbook:text"}}
        c.forecast.sizes, c.forecast.target = ("120k", "200k", "320k"), "600k"
        c.forecast.tokens = 100_000
    if part in ("classroom", "100m-tokens"):
        text = config.load_recipe(str(CONFIGS / "30m.py"))
        c.data.sources = text.data.sources
        c.data.group_by, c.data.heldout = text.data.group_by, text.data.heldout
        c.forecast.basket = tuple(text.data.sources)
    if part == "classroom":
        c.forecast.sizes, c.forecast.target = ("5m", "10m", "20m"), "100m"
        c.forecast.tokens = 30_000_000
    if part == "100m-tokens":
        c.data.sources.textbook = {"path": "runs/textbook/documents", "heldout": 0}
        c.forecast.sizes, c.forecast.seeds = ("5m", "10m", "20m", "50m", "100m"), (2, 2, 2, 1)
        c.forecast.target, c.forecast.tokens = "300m", 100_000_000
    c.eval.every, c.eval.samples, c.eval.tokens = 0, 0, 1_000_000
    # One checkpoint, at the end: a run is short.
    c.checkpoint.every, c.checkpoint.keep = 1_000_000, 1
    return c
