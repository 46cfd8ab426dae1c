"""From a base model to an assistant: supervised fine-tuning on dialogues.

python -m slmjax.launch --config=configs/sft.py --init_from=runs/tiny

Without files the dialogues are about the embedded textbook. Your own: --config.data.sources=
"{'chats': {'path': 'chats.jsonl', 'kind': 'chat'}}". The loss is that of the answers alone, each
with its end. The model and the length of a row are the parent's.
"""


def get_config(parent):
    c = parent
    c.data.sources = {
        "dialogues": {"path": "textbook:dialogues", "kind": "chat", "weight": 0.9},
        # Some running text, so that the model keeps what pretraining taught it.
        "text": {"path": "textbook:text", "weight": 0.1},
    }
    c.train.steps, c.train.batch = 150, 6
    # An anneal: half of the base's peak rate, to zero, with a short warmup.
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.decay = "muon", 2.5e-3, 5, 0.9
    c.train.weight_decay = 0.0
    c.eval.every, c.eval.tokens = 75, 8_000
    c.eval.sample_tokens = 96
    c.checkpoint.every, c.log.every = 75, 10
    return c
