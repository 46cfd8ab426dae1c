"""The 304M model of the speed measurements: width 1024, 24 layers, rows of 2,048 tokens; one GPU.

python -m slmjax.bench train --config=configs/304m.py --peers --ladder    # next to PyTorch
python -m slmjax.bench decode --config=configs/304m.py --peers
python -m slmjax.launch --config=configs/304m.py --config.data.sources=PATH

Size: 304,137,216 parameters, 33.6M of them in the embedding, which is also the output layer. 16
query heads of 64 channels share 4 key/value heads. With --config.model.heads=8
--config.model.kv_heads=2 --config.model.head_dim=128 the model has as many parameters and is
faster.
Time: 98.3M tokens take 8 minutes at the 205k tokens/s of one H200.
Score: not yet measured; slmjax/bench/LEDGER.md has the speed.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.model.width, c.model.layers = 1024, 24
    c.model.heads, c.model.kv_heads, c.model.head_dim = 16, 4, 64
    c.model.ff_width, c.model.vocab_size = 2816, 32_768
    c.data.vocab_size, c.data.seq_len = 32_768, 2048
    c.train.steps, c.train.batch = 3000, 16
    c.train.lr, c.train.warmup = 1e-3, 200
    # Evaluations and checkpoints then take 4 % of the time; with the defaults they take 6 %.
    c.eval.every, c.checkpoint.every = 500, 1000
    return c
