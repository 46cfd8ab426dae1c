"""The first evening: a 1M-parameter model on a textbook that the library writes itself. No data, no accelerator.

python -m slmjax.launch --config=configs/tiny.py
"""

from slmjax import config


def get_config():
    c = config.base()
    c.model.width, c.model.layers = 128, 5
    c.model.heads, c.model.kv_heads, c.model.head_dim = 4, 2, 32
    c.model.ff_width = 384
    c.model.qk_norm = True
    c.model.multipliers.embedding = {"lr": 2.0}
    c.data.vocab_size, c.data.seq_len = 512, 256
    c.train.steps, c.train.batch = 520, 6
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.decay = "muon", 5e-3, 20, 0.4
    c.eval.every, c.eval.tokens = 260, 8_000
    c.checkpoint.every, c.log.every = 260, 20
    return c
