r"""What a synthesized textbook is worth: 30M parameters, 100M tokens, a share of them the textbook.

python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook \
    --config.synthesize.documents=50000
for share in 0 0.2 0.5; do for seed in 0 1 2; do
    python -m slmjax.launch --config=configs/studies/textbook.py:$share --config.seed=$seed \
        --workdir=runs/worth/$share-$seed
done; done
python -m slmjax.compare runs/worth/* --sources=books,textbooks,math,docs,code,reference

The embedded teacher writes the textbook; the rest is real text. Model, domains and held-out text
are those of configs/30m.py, which says where the text is. The domains keep the proportions of their
tokens, and the textbook is read ten times at most. All runs share one tokenizer, trained on all of
the text, and the same held-out documents. At the end each is asked the embedded textbook's held-out
questions, whose names, numbers and wordings the teacher does not use.

Time: 75 s from first to last step on one H200 (1.36M tokens/s, 2026-11-29), with
--config.eval.samples=0 --config.checkpoint.every=1526.
Score: a share of 0.2 costs 1.9 % of bits per byte on real text and answers 37 % of the questions
instead of none; 0.5 costs 7.1 % and answers 36 %. Tables and the control: docs/studies.md.
The control reads only as many real tokens as a run with a textbook does: a share of 0 with
--config.train.steps=1221 (for 0.2) or 763 (for 0.5), and --config.checkpoint.every as many.
"""

from pathlib import Path

from slmjax import config

# Millions of tokens of each domain, rounded; their proportions are the weights of the domains.
TOKENS = {"books": 24, "textbooks": 11, "math": 13, "docs": 17, "code": 4, "reference": 2}


def get_config(share="0.2"):
    share = float(share)
    if not 0 <= share < 1:
        raise ValueError(
            f"The share of the textbook is {share}; it must be at least 0 and less than 1."
        )
    c = config.load_recipe(str(Path(__file__).parents[1] / "30m.py"))
    c.data.sources.textbook = {"path": "runs/textbook/documents", "max_epochs": 10}
    real = {name: (1 - share) * tokens / sum(TOKENS.values()) for name, tokens in TOKENS.items()}
    c.data.phases = ({"until": 1.0, "weights": {**real, "textbook": share}},)
    c.train.steps, c.eval.every, c.eval.textbook = 1526, 1526, True
    return c
