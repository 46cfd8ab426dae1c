"""A 30M model on six domains of real text, four epochs, one GPU.

python -m slmjax.launch --config=configs/30m.py
python -m slmjax.bench.peers.llama --config=configs/30m.py --workdir=runs/30m-llama
python -m slmjax.compare runs/30m runs/30m-llama

The second command trains transformers' Llama on the same batches with the same schedule.

Data: $SLMJAX_SHARED/pretrain/<domain>/*.jsonl.xz (SLMJAX_SHARED is ../shared/data unless set), for
books, textbooks, mathematics, documentation, code and reference. 75.5M training tokens with a
tokenizer of 16,384 that is trained on the text; 4,400 steps of 65,536 tokens read 288M, 3.8 epochs.
Held out: whole books, chapters of mathematics, modules, pages, countries, and code problems in all
their languages; 935 documents, 5.5 MB; 63 more were removed because their text occurs in
training.
Size: 29.9M parameters, of them 6.3M in the embedding. The model has neither a norm on queries and
keys nor an output gate, so that every block is a Llama block.
Time: 171 s for half of the run on one H200, at 859k tokens/s (2026-11-22). A later measurement has
1.36M tokens/s (2026-11-29).
Score after half of the run (144M tokens, one seed): 1.0817 bits per byte; the Llama has 1.0949.
docs/studies.md has the table by domain, the fields that were set, and what a kill cost.
"""

import os
from pathlib import Path

from slmjax import config
from slmjax.errors import UserError

DOMAINS = ("books", "textbooks", "math", "docs", "code", "reference")

# The group of an id is what follows "#" (code: a problem's number, the same in every language), or
# "factbook/REGION/COUNTRY", or what precedes a last piece that is a number (books and mathematics:
# the book or file of a chapter), else the whole id (modules and pages).
GROUP = r"^(?:.*#)?(factbook/[^/]+/[^/]+(?=/)|.+?(?=/\d+$)|.+)"


def get_config():
    c = config.base()
    # Wider and less deep than --params=30m: larger matrix products, fewer of them.
    c.model.width, c.model.layers = 384, 15
    c.model.heads, c.model.kv_heads, c.model.head_dim = 6, 2, 64
    c.model.ff_width, c.model.vocab_size = 1024, 16_384
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser() / "pretrain"
    for domain in DOMAINS:
        if not (root / domain).is_dir():
            raise UserError(
                f"configs/30m.py expects the folder '{root / domain}'; SLMJAX_SHARED names the "
                "folder that holds pretrain/."
            )
        # Without weights, a domain's share of a batch is its share of the tokens.
        c.data.sources[domain] = {"path": str(root / domain)}
    c.data.group_by, c.data.heldout = GROUP, 0.02
    c.data.vocab_size, c.data.seq_len = 16_384, 1024
    c.train.steps, c.train.batch = 4400, 64
    c.train.lr, c.train.warmup, c.train.decay = 3e-3, 200, 0.2
    c.eval.every, c.eval.tokens = 1100, 1_000_000
    c.checkpoint.every = 550
    return c
