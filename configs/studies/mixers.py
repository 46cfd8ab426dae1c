"""Which mixer languages best at equal parameters and tokens: 10M parameters, 100M tokens, one switch apart.

for mixer in attention ssm gla gdn kda hybrid shared_keys shared_blocks; do for seed in 0 1; do
    python -m slmjax.launch --config=configs/studies/mixers.py:$mixer --config.data.sources=books=~/books --config.seed=$seed \
        --workdir=runs/mixers/$mixer-$seed
done; done
python -m slmjax.compare runs/mixers/*

The feed-forward width is chosen so that all have the 10.0M parameters of configs/10m.py. Heads are three of 64 channels, Mamba-2's six.
hybrid: three gated DeltaNet blocks to one of attention. shared_keys: two attention layers to one set of keys and values. shared_blocks:
every block is applied twice, so that it has twice the FLOPs. All train with one learning rate, which none of them was tuned for.
Score: not yet measured.
"""

from slmjax import config
from slmjax.models import sizes
from slmjax.models.architecture import from_config

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
    budget = sizes.parameters(from_config(c, c.model.vocab_size)).total
    c.model.pattern = PATTERNS[variant]
    c.model.share_kv = 2 if variant == "shared_keys" else 1
    c.model.share_blocks = 2 if variant == "shared_blocks" else 1
    c.model.ff_width = sizes.ff_width_for(from_config(c, c.model.vocab_size), budget)
    return c
