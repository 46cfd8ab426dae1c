r"""What can a finished run do? Multiple choice, cloze, grammar and word problems, with intervals.

python -m slmjax.launch --config=configs/evaluate.py --init_from=runs/30m
python -m slmjax.launch --config=configs/evaluate.py:word_problems --init_from=runs/sft \
    --workdir=runs/sft-gsm8k --config.evaluate.shots=0,8 --config.evaluate.samples=16
python -m slmjax.launch --config=configs/evaluate.py:textbook --init_from=runs/tiny

Without an argument: ARC, PIQA, WinoGrande, BoolQ, COPA, OpenBookQA, LAMBADA and BLiMP, by
log-likelihood, of $SLMJAX_SHARED/evals (SLMJAX_SHARED is ../shared/data unless set).
word_problems: GSM8K's test problems, answered in the model's own words.
development: 500 of GSM8K's training problems to choose runs by, with 16 samples each.
textbook: held-out questions of the embedded textbook, which need no data.
files: only those of --config.evaluate.files.NAME=PATH.

Results are results.json, report.html and a page with every item of each task.
Time and score: not yet measured.
"""

from slmjax import config

TASKS = {
    "choices": (
        "arc_easy",
        "arc_challenge",
        "piqa",
        "winogrande",
        "boolq",
        "copa",
        "openbook_qa",
        "lambada_openai",
        "blimp",
    ),
    "word_problems": ("gsm8k_test",),
    "development": ("gsm8k_dev",),
    "textbook": ("textbook",),
    "files": (),
}


def get_config(part="choices"):
    if part not in TASKS:
        raise ValueError(f"There is no part '{part}'; there is {', '.join(TASKS)}.")
    c = config.base()
    c.stage = "evaluate"
    c.evaluate.tasks = TASKS[part]
    if part == "development":
        c.evaluate.samples = 16
    if part == "textbook":
        # Its rows have 256 tokens, of which a question takes up to 90.
        c.evaluate.max_tokens = 128
    return c
