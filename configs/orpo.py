"""From an assistant to one that prefers the better answer: ORPO on pairs.

python -m slmjax.launch --config=configs/orpo.py --init_from=runs/sft

Without files the pairs are right and wrong answers to questions of the embedded textbook. Your own:
--config.data.sources="{'pairs': {'path': 'pairs.jsonl', 'kind': 'pairs', 'heldout': 0.2}}".
"""


def get_config(parent):
    c = parent
    c.task = "orpo odds_weight=0.1"
    c.data.sources = {
        "pairs": {"path": "textbook:pairs", "kind": "pairs", "weight": 1.0},
        # Some running text, so that alignment costs little of what pretraining taught.
        "text": {"path": "textbook:text", "weight": 0.1},
    }
    c.train.steps, c.train.batch = 150, 6
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.decay = "muon", 1e-3, 10, 0.9
    c.train.weight_decay = 0.0
    c.eval.every, c.eval.tokens = 75, 8_000
    c.eval.sample_tokens = 96
    c.checkpoint.every, c.log.every = 75, 10
    return c
