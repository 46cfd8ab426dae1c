r"""Which mixer models text best at equal parameters and tokens: 10M parameters, 100M tokens.

python -m slmjax.launch --config=configs/30m.py --config.stage=prepare --workdir=runs/30m
text=$(dirname runs/prepared/books-*/manifest.json)
sources=books=$text/books,textbooks=$text/textbooks,math=$text/math
sources=$sources,docs=$text/docs,code=$text/code,reference=$text/reference
for mixer in attention ssm gla gdn kda hybrid shared_keys shared_blocks; do
  for rate in 0.003 0.006 0.012 0.024; do for seed in 0 1; do
    python -m slmjax.launch --config=configs/studies/mixers.py:$mixer --config.train.lr=$rate \
        --config.data.sources=$sources --config.seed=$seed \
        --config.eval.every=0 --config.checkpoint.every=1526 \
        --workdir=runs/mixers/$mixer-$rate-$seed
  done; done
done
python -m slmjax.compare runs/mixers/*

The feed-forward width is chosen so that all variants have the 10.0M parameters of configs/10m.py.
Each has three heads of 64 channels, but Mamba-2 (ssm) has six. hybrid: one block of attention after
three of gated DeltaNet. shared_keys: two attention layers share one set of keys and values.
shared_blocks: every block is applied twice, so the model has twice the FLOPs.

Time on one H200, training alone: attention 45 s, shared_keys 46, gla 75, shared_blocks 78, hybrid
83, ssm 91, gdn 92, kda 128 (2026-11-29, with the faster chunks and products that docs/studies.md
names).
Score, bits per byte at the best rate that ran: hybrid 1.1725 (0.012), attention 1.1752 (0.006; as
good at 0.012), ssm 1.1800 (0.024), kda 1.1831 (0.012), gdn 1.1917 (0.024), gla 1.2832 (0.024). Not
run: 0.048 with any, and shared keys and blocks above 0.003. Tables with intervals: docs/studies.md.
"""

from slmjax import config
from slmjax.models import sizes
from slmjax.models.pattern import from_config

PATTERNS = {
    "attention": ("attention",),
    "ssm": ("ssm",),
    "gla": ("gla",),
    "gdn": ("gdn",),
    "kda": ("kda",),
    "hybrid": ("gdn", "gdn", "gdn", "attention"),
    "shared_keys": ("attention",),
    "shared_blocks": ("attention",),
}


def get_config(variant="attention"):
    if variant not in PATTERNS:
        raise ValueError(f"There is no variant '{variant}'; there is {', '.join(PATTERNS)}.")
    c = config.base()
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 192, 16
    c.model.heads, c.model.kv_heads, c.model.head_dim = 3, 1, 64
    c.model.ff_width = 576
    c.data.vocab_size, c.data.seq_len = 16384, 512
    c.train.steps, c.train.batch = 1526, 128
    c.train.optimizer, c.train.lr, c.train.warmup = "muon", 3e-3, 150
    c.eval.every, c.eval.tokens, c.eval.samples = 500, 1_000_000, 0
    # The feed-forward width that gives a variant as many parameters as plain attention has.
    budget = sizes.parameters(from_config(config.freeze(c).model, c.model.vocab_size)).total
    c.model.pattern = PATTERNS[variant]
    c.model.share_kv = 2 if variant == "shared_keys" else 1
    c.model.share_blocks = 2 if variant == "shared_blocks" else 1
    arch = from_config(config.freeze(c).model, c.model.vocab_size)
    c.model.ff_width = sizes.ff_width_for(arch, budget)
    return c
