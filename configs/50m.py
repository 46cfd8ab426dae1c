r"""50M parameters for a text of your own; without one, the embedded textbook.

python -m slmjax.launch --config=configs/50m.py \
    --config.data.sources="books:0.7=~/books,web:0.3=~/web/*.jsonl.zst"

Size: 50.35M parameters in all, 44.06M without the embedding, 50.33M in matrix products.
Time: 1.05B tokens are 3.86e17 FLOPs, 0.27 H100-hours at an assumed 40 % of 989 TFLOP/s.
Score: not yet measured.
"""

from slmjax import config


def get_config():
    c = config.base()
    # The model's vocabulary is set apart from the tokenizer's, so that the model has its named size
    # even if a small text gives a tokenizer of fewer tokens.
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 384, 28
    c.model.heads, c.model.kv_heads, c.model.head_dim = 6, 2, 64
    c.model.ff_width = 1024
    c.data.vocab_size, c.data.seq_len = 16384, 1024
    c.train.steps, c.train.batch, c.train.microbatches = 4000, 256, 4
    c.train.optimizer, c.train.lr, c.train.warmup = "muon", 2e-3, 200
    c.eval.every = 500
    return c
