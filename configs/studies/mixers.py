"""Which mixer languages best at equal parameters and tokens: 10M parameters, 100M tokens, one switch apart.

for mixer in attention ssm gla gdn kda hybrid shared_keys shared_blocks; do for seed in 0 1; do
    python -m slmjax.launch --config=configs/studies/mixers.py:$mixer --config.data.sources=books=~/books --config.seed=$seed \
        --workdir=runs/mixers/$mixer-$seed
done; done
python -m slmjax.compare runs/mixers/*

The feed-forward width is chosen so that all have the 10.0M parameters of configs/10m.py. Heads are three of 64 channels, Mamba-2's six.
hybrid: three gated DeltaNet blocks to one of attention. shared_keys: two attention layers to one set of keys and values. shared_blocks:
every block is applied twice, so that it has twice the FLOPs. All train with one learning rate, which none of them was tuned for.

Score: the command above with the six domains of configs/30m.py, on one H200 (2026-11-29). Held-out bits per byte, mean of two seeds, its
difference to attention's with the 95 % interval of `compare`, training FLOPs and seconds of training alone at the speed it had:

    mixer          bits per byte      difference                      PFLOPs  seconds
    attention      1.1896 +- 0.0004                                   7.0      45
    shared_keys    1.1922 +- 0.0030   +0.0026 (-0.0017 to +0.0066)    7.0      46
    shared_blocks  1.1901 +- 0.0025   +0.0006 (-0.0033 to +0.0045)   12.0      78
    hybrid         1.1997 +- 0.0025   +0.0101 (+0.0064 to +0.0140)    6.5      83
    kda            1.2101 +- 0.0041   +0.0205 (+0.0147 to +0.0268)    6.3     128
    ssm            1.2279 +- 0.0055   +0.0383 (+0.0306 to +0.0463)    6.9      91
    gdn            1.2316 +- 0.0014   +0.0420 (+0.0380 to +0.0462)    6.4      92
    gla            1.3258 +- 0.0006   +0.1362 (+0.1271 to +0.1454)    6.1      75

The gap is widest where text repeats what stands before (code and docs: ssm +0.070 and +0.062, kda +0.040 and +0.034) and smallest in books
(+0.017, +0.008), as Zoology explains it (Arora et al. 2023). Recurrent mixers are behind from the first hundred steps on, while published
gated DeltaNets of 1.3B parameters and 100B tokens are ahead (Yang et al. 2024): with 100M tokens, contexts of 512 and one learning rate
for all this ranks the recipe, not each mixer at its best. Chunks of 32 (gla, gdn, hybrid, kda) and XLA's Triton products (ssm, gdn, hybrid)
were on, which the launcher does not choose by itself.
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
