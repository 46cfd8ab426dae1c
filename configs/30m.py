"""A 30M model on six domains of real text (books, textbooks, mathematics, documentation, code, reference), four epochs, one GPU.

python -m slmjax.launch --config=configs/30m.py
python -m slmjax.bench.peers.llama --config=configs/30m.py --workdir=runs/30m-llama   (transformers' Llama, same batches and schedule)
python -m slmjax.compare runs/30m runs/30m-llama

The text is read from $SLMJAX_SHARED/pretrain/<domain>/*.jsonl.xz (SLMJAX_SHARED is ../shared/data unless set). 29.9M parameters, of them
6.3M in the embedding. 75.5M training tokens (tokenizer of 16,384, trained on the text): 4,400 steps of 65,536 tokens read 288M, 3.8 epochs.
Whole books, chapters of mathematics, modules, pages, countries, and code problems in all their languages are held out: 935 documents,
5.5 MB, after 63 were removed that training has seen. There is no norm on queries and keys and no output gate, so that every block is a
Llama block.

Measured on one H200 on 2026-11-22 (jax 0.11.2, torch 2.11, transformers 5.17), all three commands with
--config.train.steps=2200 --config.eval.every=1100 --config.checkpoint.every=550 --config.log.every=20 (144M tokens, 1.9 epochs), one seed:

    bits per byte       books   textbooks  math    docs    code    reference  all
    slmjax              1.2999  1.1354     0.7897  0.9792  0.5022  0.7147     1.0817
    killed and resumed  1.3015  1.1345     0.7902  0.9773  0.5016  0.7128     1.0817
    transformers Llama  1.3091  1.1525     0.8049  0.9951  0.5178  0.7276     1.0949

The Llama has its own initialisation (normal, 0.02), on the same batches, AdamW and schedule; 1.2 % worse than the mean of both runs of
ours, 95 % interval over documents 1.14 to 1.30 %. slmjax: 859k tokens/s (median; MFU 18.6 %), peak memory 15.8 GiB, 171 s from first to
last step, goodput 98.7 % (0.9 % checkpoints, 0.4 % evaluation), five steps skipped as spikes; preparing took 29 s, the first start 37
s. The Llama under torch.compile: 723k tokens/s, 15.4 GiB. SIGKILL at step 800 and the same command again: 6.6 s from restart to first
step (start 1.7, compile 4.4 from the warm cache, restore 0.5), 19.0 s of steps repeated from the checkpoint at 550, 1.7 s down; goodput
85.2 %. Since these runs, packing spreads short documents over the rows, and attention, loss and reading are faster: slmjax/bench/LEDGER.md.
On 2026-11-29 this model had 1.36M tokens/s (median; MFU 29.5 %) in the runs of configs/studies/textbook.py.
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
    c.model.width, c.model.layers = (
        384,
        15,
    )  # wider and less deep than --params=30m: larger matrix products, fewer of them
    c.model.heads, c.model.kv_heads, c.model.head_dim = 6, 2, 64
    c.model.ff_width, c.model.vocab_size = 1024, 16_384
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser() / "pretrain"
    for domain in DOMAINS:
        if not (root / domain).is_dir():
            raise UserError(
                f"configs/30m.py expects the folder '{root / domain}'; SLMJAX_SHARED names the folder that holds pretrain/."
            )
        c.data.sources[domain] = {"path": str(root / domain)}  # no weights: by tokens
    c.data.group_by, c.data.heldout = GROUP, 0.02
    c.data.vocab_size, c.data.seq_len = 16_384, 1024
    c.train.steps, c.train.batch = 4400, 64
    c.train.lr, c.train.warmup, c.train.decay = 3e-3, 200, 0.2
    c.eval.every, c.eval.tokens = 1100, 1_000_000
    c.checkpoint.every = 550
    return c
