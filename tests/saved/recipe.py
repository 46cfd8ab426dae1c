"""The runs that tests/saved keeps: `--config=recipe.py:KIND` with dense, hybrid or float8, next to corpus.jsonl.

It is read by commit ed18125, which made them, and by this version.
"""

from slmjax import config


def get_config(kind: str = "dense"):
    c = config.base()
    c.model.width, c.model.layers = 8, 2
    c.model.heads, c.model.kv_heads, c.model.head_dim = 2, 1, 4
    c.model.ff_width = 12
    c.model.qk_norm = c.model.output_gate = True
    c.data.sources = config.ConfigDict({"words": {"path": "corpus.jsonl"}})
    c.data.vocab_size, c.data.seq_len, c.data.heldout = 300, 32, 0.1
    c.train.steps, c.train.batch, c.train.microbatches = 128, 16, 2
    c.train.lr, c.train.warmup, c.train.decay = (
        2e-2,
        4,
        0.0625,
    )  # the decay begins at step 120, which is saved
    c.train.optimizer, c.train.z_loss = "muon", 1e-4
    c.eval.every, c.eval.tokens, c.eval.samples = 0, 200, 0
    c.checkpoint.every = 1000
    c.log.every = 1
    if kind == "hybrid":
        c.model.pattern = (
            "gdn+none heads=1",
            "ssm+none heads=1 key_dim=4",
            "gla+none heads=1",
            "kda+none heads=1",
            "attention window=9",
            "attention+none borrows=True window=9",
            "attention+none rope=False",
        )
        c.model.layers = len(c.model.pattern)
    if kind == "float8":
        c.precision.products, c.precision.compute = "float8", "bfloat16"
        c.train.optimizer = "adamw"
        c.model.multipliers = config.ConfigDict(
            {"matrix": {"init": 0.5, "lr": 2.0, "decay": 0.5}, "embedding": {"lr": 0.7}}
        )
    return c
