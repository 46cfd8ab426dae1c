"""What each mixer can recall: associative recall, selective copying and induction heads.

python -m slmjax.launch --config=configs/studies/recall.py --workdir=runs/recall
python -m slmjax.launch --config=configs/studies/recall.py --workdir=runs/recall-small \
    --config.study.tasks=recall:32:2 --config.study.vocab=64 --config.train.steps=400 \
    --config.train.batch=64 --config.study.examples=4096

Tasks: Zoology (Arora et al. 2023) and Mamba (Gu and Dao 2023). Models have two blocks of width 64
without feed-forward layers, as in Zoology's figure 2. Recurrent mixers have two heads of 32 key and
value channels. Mamba-2 has four heads with 64 key and 32 value channels (four times the memory), or
16 and 32 (ssm-16, the same memory). The hybrid is a gated DeltaNet block under an attention block.

Each model is a run of its own, below the work directory's `runs`, with its metrics, report and
checkpoints. A study that was killed goes on with the run in which it was killed. Learning rates are
tried in their order, up to the first whose accuracy on validation rows, mean over seeds, is
`study.enough`. `steps` in study.json is the step of the first evaluation (every config.eval.every
steps) at which the chosen rate had this accuracy. Every run trains to config.train.steps, the
length of its cosine schedule.

Published: attention recalls everything at width 64 (Zoology, figure 2); of recurrences KDA >= gated
DeltaNet > Mamba-2 (Kimi Linear, section 5.1); selection makes copying possible, 99.8 % against
18.3 % without (Gu and Dao 2023, table 1).
Score: the same order at equal memory; the table is in docs/studies.md.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "recall"
    c.model.width, c.model.layers = 64, 2
    c.model.heads, c.model.kv_heads, c.model.head_dim = 2, 2, 32
    # "+none": without a feed-forward layer.
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
