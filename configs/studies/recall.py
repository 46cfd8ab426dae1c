"""What each mixer can recall: associative recall (Zoology), selective copying and induction heads (Mamba).

python -m slmjax.launch --config=configs/studies/recall.py --workdir=runs/recall
python -m slmjax.launch --config=configs/studies/recall.py --workdir=runs/recall-small \
    --config.study.tasks=recall:32:2 --config.study.vocab=64 --config.train.steps=400 --config.train.batch=64 --config.study.examples=4096

Each model is a run of its own, below the work directory's `runs`: its metrics, report and checkpoints are there. A study that was
killed goes on with the run in which it was killed. Learning rates are tried in their order; after the first whose mean over seeds has
`study.enough` on validation rows, no further one is tried. `steps` in study.json is the first look (every config.eval.every steps) at
which the chosen rate had enough; every run trains to config.train.steps, since the cosine is made for it.

Models have two blocks of width 64 without feed-forward layers, as in Zoology's figure 2 (Arora et al. 2023); recurrent mixers have two
heads of 32 key and value channels, Mamba-2 four of 64 and 32, a memory four times as large, or of 16 and 32 (ssm-16), one as large. The
hybrid is a gated DeltaNet block under an attention block.
Published: attention recalls everything at width 64 (Zoology, figure 2); of recurrences KDA >= gated DeltaNet > Mamba-2, which fails at
recall (Kimi Linear, section 5.1); selection makes copying possible, 99.8 % against 18.3 % without (Gu and Dao 2023, table 1).

Measured up to commit b54da27, whose study had a training loop of its own, with the first command, a variant or two in a process, on
H200s (2026-11-28 and -29; jax 0.11.2): test accuracy over three seeds, and steps of training. There all rates of a model trained side
by side on the same rows, and ended at 6,000 steps or where one rate had 0.99 on the validation rows, looked at every 500.

    mixer      recall:64:4          recall:128:8         recall:256:16        copy:256:16          induction:256
    attention  0.996 +- 0.000 1000  0.996 +- 0.002 1000  0.997 +- 0.000 1000  0.945 +- 0.045 6000  0.952 +- 0.067 6000
    hybrid     0.991 +- 0.003 1500  0.994 +- 0.002 1000  0.995 +- 0.003 2000  0.993 +- 0.003 4000  1.000 +- 0.000  500
    kda        0.998 +- 0.002 2000  0.990 +- 0.003 1500  0.991 +- 0.003 3000  0.992 +- 0.002 2500  1.000 +- 0.000  500
    gdn        0.995 +- 0.003 1500  0.992 +- 0.002 2500  0.992 +- 0.004 3000  0.999 +- 0.001 4500  1.000 +- 0.000  500
    ssm        0.992 +- 0.002 1500  0.992 +- 0.001 2000  0.992 +- 0.002 2500  0.991 +- 0.008 4500  1.000 +- 0.000 1000
    ssm-16     0.985 +- 0.002 6000  0.983 +- 0.007 6000  0.981 +- 0.006 6000  0.978 +- 0.027 6000  1.000 +- 0.000 1000
    gla        0.984 +- 0.010 6000  0.951 +- 0.010 6000  0.934 +- 0.016 6000  0.939 +- 0.030 6000  1.000 +- 0.000 2500

Rows that ended before 6,000 steps were stopped at 0.99: there the steps tell mixers apart. Attention and the hybrid are equal at recall, as
published. At equal memory the order is that of Kimi Linear: KDA and gated DeltaNet have 0.99 after 1,500 to 3,000 steps, Mamba-2 (ssm-16)
has not after 6,000; it does not fail, though, and with four times the memory (ssm) it is their equal. KDA and gated DeltaNet cannot be told
apart. All selective mixers copy, as Mamba does. Late at copying and at induction are the two without a short convolution, attention and
gla. Attention's seeds differ there: some have 0.99, others not yet.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "recall"
    c.model.width, c.model.layers, c.model.heads, c.model.kv_heads, c.model.head_dim = (
        64,
        2,
        2,
        2,
        32,
    )
    recurrent = {
        "ssm": "ssm+none key_dim=64",
        "ssm-16": "ssm+none key_dim=16",
        "gla": "gla+none key_dim=32",
        "gdn": "gdn+none",
        "kda": "kda+none",
    }
    c.study.variants = {
        "attention": ("attention+none",),
        **{name: (block,) for name, block in recurrent.items()},
        "hybrid": ("gdn+none", "attention+none rope=False"),
    }
    c.study.tasks = ("recall:64:4", "recall:128:8", "recall:256:16", "copy:256:16", "induction:256")
    c.study.vocab, c.study.examples, c.study.tested = 8192, 100_000, 3000
    c.study.rates, c.study.seeds, c.study.enough = (4.6e-4, 2.2e-3, 1e-2), 3, 0.99
    c.train.steps, c.train.batch, c.train.warmup, c.train.schedule = 6000, 256, 300, "cosine"
    c.eval.every, c.log.every = 500, 100
    c.checkpoint.every, c.checkpoint.keep = 1000, 2
    return c
