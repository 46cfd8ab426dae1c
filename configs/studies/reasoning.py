"""Does a model reason about word problems, or does it match patterns?

python -m slmjax.launch --config=configs/studies/reasoning.py --init_from=runs/solver
python -m slmjax.launch --config=configs/studies/reasoning.py:toy --init_from=runs/tiny

The first command asks variants of 200 templates that were held out and of 200 that may be trained
on (`python -m slmjax.probe_training` writes these), made of GSM8K's training problems in
$SLMJAX_SHARED (../shared/data unless set). toy: the package's own problems, fewer variants.

Results are results.json, report.html and a page with every item of each arm.
Time and score: not yet measured.
"""

from slmjax import config


def get_config(part=""):
    if part not in ("", "toy"):
        raise ValueError(f"There is no part '{part}'; there is toy.")
    c = config.base()
    c.stage = "reasoning"
    if part == "toy":
        c.reasoning.problems, c.reasoning.variants = "examples", 3
        # Rows of configs/tiny.py have 256 tokens.
        c.reasoning.max_tokens = 96
    return c
