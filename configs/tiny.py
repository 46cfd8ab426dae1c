"""The first evening: a 1M-parameter model on a textbook that the library writes itself.

python -m slmjax.launch --config=configs/tiny.py

It needs no data and no accelerator.
Time: 152 s on two cores of a shared AMD EPYC from an empty compile cache, compiling and preparing
included (jax 0.10.2, 2026-11-22).
Score: held-out bits per byte 0.464, 0.428, 0.425 and 0.436 with seeds 0 to 3 (2026-11-30). The best
Kneser-Ney model of orders 2 to 5 on the same tokens has 1.82 (order 5). Exact answers with seed 0,
of 25 questions a kind, next to chance: word problems 4 % (4 %), units 4 % (3 %), comparison 4 %
(35 %; it sorts unseen numbers badly), sequences 4 % (8 %), logic 72 % (49 %), definitions 40 %
(18 %). The Kneser-Ney model answers none.
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
