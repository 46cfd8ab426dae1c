"""100M parameters on 10B tokens of FineWeb-Edu, about 100 tokens a parameter.

python -m slmjax.launch --config=configs/100m.py                                  # one GPU of 80 GB
python -m slmjax.launch --config=configs/100m.py --config.train.microbatches=1    # eight GPUs

Data: HuggingFaceFW/fineweb-edu, sample 10BT (Penedo et al. 2024); needs the extra `hub`. Its commit
is pinned in the manifest.
Size: 98.61M parameters in all, 90.22M without the embedding, 98.57M in matrix products.
Time: 10.5B tokens are 8.31e18 FLOPs, 5.83 H100-hours at an assumed 40 % of 989 TFLOP/s.
Score: not yet measured.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 512, 32
    c.model.heads, c.model.kv_heads, c.model.head_dim = 4, 1, 128
    c.model.ff_width = 1408
    c.model.qk_norm = True
    c.data.sources.web = {
        "path": "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet",
        "field": "text",
    }
    c.data.vocab_size, c.data.seq_len = 16384, 2048
    c.train.steps, c.train.batch, c.train.microbatches = 20_000, 256, 8  # 524,288 tokens a step
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.z_loss = "muon", 1.5e-3, 500, 1e-4
    c.eval.every, c.eval.tokens = 1000, 1_000_000
    c.checkpoint.every = 1000
    return c
