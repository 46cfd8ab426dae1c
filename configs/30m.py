"""A 30M model on six domains of real text (books, textbooks, mathematics, documentation, code, reference), four epochs, one GPU.

python -m slmjax.launch --config=configs/30m.py
python -m slmjax.bench.llama_peer --config=configs/30m.py --workdir=runs/30m-llama   (transformers' Llama, same batches and schedule)
python -m slmjax.compare runs/30m runs/30m-llama

The text is read from $SLMJAX_SHARED/pretrain/<domain>/*.jsonl.xz (SLMJAX_SHARED is ../shared/data unless set). 29.9M parameters, of them
6.3M in the embedding. About 75M tokens (estimated with a 16k tokenizer of an eighth of the text): 4,400 steps of 65,536 tokens read
288M, 3.9 epochs. Whole books, chapters of mathematics, modules, pages, countries, and code problems in all their languages are held out.
There is no norm on queries and keys and no output gate, so that every block is a Llama block.

Figures: not yet measured (bits per byte of each domain and in all, beside the peer's; tokens/s, MFU, goodput; seconds from restart to first
step).
"""

import os
from pathlib import Path

from slmjax import config
from slmjax.errors import UserError

DOMAINS = ("books", "textbooks", "math", "docs", "code", "reference")

# The group of an id: what follows "#" (code: a problem's number, the same in every language), "factbook/REGION/COUNTRY", what stands before
# a last piece that is a number (books and mathematics: the book or file of a chapter), else the whole id (modules and pages).
GROUP = r"^(?:.*#)?(factbook/[^/]+/[^/]+(?=/)|.+?(?=/\d+$)|.+)"


def get_config():
    c = config.base()
    c.model.width, c.model.layers = 384, 15  # wider and less deep than --params=30m: larger matrix products, fewer of them
    c.model.heads, c.model.kv_heads, c.model.head_dim = 6, 2, 64
    c.model.ff_width, c.model.vocab_size = 1024, 16_384
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser() / "pretrain"
    for domain in DOMAINS:
        if not (root / domain).is_dir():
            raise UserError(f"configs/30m.py expects the folder '{root / domain}'; SLMJAX_SHARED names the folder that holds pretrain/.")
        c.data.sources[domain] = {"path": str(root / domain)}  # no weights: by tokens
    c.data.group_by, c.data.heldout = GROUP, 0.02
    c.data.vocab_size, c.data.seq_len = 16_384, 1024
    c.data.workers = 4
    c.train.steps, c.train.batch = 4400, 64
    c.train.lr, c.train.warmup, c.train.decay = 3e-3, 200, 0.2
    c.eval.every, c.eval.tokens = 1100, 1_000_000
    c.checkpoint.every = 550
    return c
