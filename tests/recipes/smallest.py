"""The smallest model that has every part, for tests of what surrounds it: `--config=tests/recipes/smallest.py:CORPUS`."""

from pathlib import Path

from slmjax import config


def get_config(corpus: str = "corpus.jsonl"):
    c = config.base()
    c.model.width, c.model.layers = 16, 2
    c.model.heads, c.model.kv_heads, c.model.head_dim = 2, 1, 8
    c.model.ff_width = 32
    c.data.sources = config.ConfigDict({"words": {"path": corpus}})
    c.data.cache = str(Path(corpus).parent / "prepared")
    c.data.vocab_size, c.data.seq_len, c.data.heldout = 320, 64, 0.05
    c.train.steps, c.train.batch, c.train.microbatches = 30, 16, 2
    c.train.lr, c.train.warmup, c.train.decay = 1e-2, 4, 0.2
    c.eval.every, c.eval.tokens, c.eval.samples = 0, 1000, 0
    c.checkpoint.every, c.checkpoint.keep = 5, 3
    c.log.every = 1
    return c
