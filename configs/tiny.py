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
    c.data.vocab_size, c.data.seq_len = 1024, 128
    c.train.steps, c.train.batch = 300, 32
    c.train.lr, c.train.warmup, c.train.decay = 4e-3, 30, 0.3
    c.eval.every, c.eval.tokens = 100, 20_000
    c.checkpoint.every = 100
    return c
