"""What a synthesized textbook is worth: 30M parameters, 100M tokens, a share of them written by the embedded teacher, the rest real text.

python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook --config.synthesize.documents=50000
for share in 0 0.2 0.5; do for seed in 0 1 2; do
    python -m slmjax.launch --config=configs/studies/textbook.py:$share --config.seed=$seed --workdir=runs/worth/$share-$seed
done; done
python -m slmjax.compare runs/worth/*

Model, domains and held-out text are those of configs/30m.py (which says where the text is), the domains in the proportions of their
tokens, the textbook at most ten times over. All runs share one tokenizer, trained on all of the text, and the same held-out documents.
At the end each is asked the embedded textbook's held-out questions, whose names, numbers and wordings the teacher does not use.
Score: not yet measured.
"""

from pathlib import Path

from slmjax import config

TOKENS = {"books": 24, "textbooks": 11, "math": 13, "docs": 17, "code": 4, "reference": 2}  # millions, about


def get_config(share="0.2"):
    share = float(share)
    if not 0 <= share < 1:
        raise ValueError(f"The share of the textbook is {share}; it must be at least 0 and less than 1.")
    c = config.load(str(Path(__file__).parents[1] / "30m.py"))
    c.data.sources.textbook = {"path": "runs/textbook/documents", "max_epochs": 10}
    real = {name: (1 - share) * tokens / sum(TOKENS.values()) for name, tokens in TOKENS.items()}
    c.data.phases = ({"until": 1.0, "weights": {**real, "textbook": share}},)
    c.train.steps, c.eval.every, c.eval.textbook = 1526, 1526, True
    return c
