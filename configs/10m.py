"""10M parameters for a text of your own; without one, the embedded textbook.

python -m slmjax.launch --config=configs/10m.py --config.data.sources=books=~/books

Size: 10.03M parameters in all, 6.89M without the embedding, 10.03M in matrix products.
Time: 197M tokens are 1.37e16 FLOPs, 0.01 H100-hours at an assumed 40 % of 989 TFLOP/s. So small a
model reaches less: 86 s at the 2.3M tokens/s of `python -m slmjax.bench train
--config=configs/10m.py --text` on one H200. Two CPU cores (0.75k tokens/s were measured at this
size) need three days; use configs/tiny.py there.
Score: not yet measured.
"""

from slmjax import config


def get_config():
    c = config.base()
    # The model's vocabulary is set apart from the tokenizer's, so that the model has its named size
    # even if a small text gives a tokenizer of fewer tokens.
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 192, 16
    c.model.heads, c.model.kv_heads, c.model.head_dim = 3, 1, 64
    c.model.ff_width = 576
    c.data.vocab_size, c.data.seq_len = 16384, 512
    c.train.steps, c.train.batch = 3000, 128
    c.train.optimizer, c.train.lr, c.train.warmup = "muon", 3e-3, 150
    c.eval.every = 500
    return c
