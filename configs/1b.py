"""1B parameters on 100B tokens of FineWeb-Edu, about 100 tokens a parameter.

python -m slmjax.launch --config=configs/1b.py --workdir=gs://BUCKET/1b

Run the command on a host with eight GPUs, or on every host of a TPU slice.
Data: HuggingFaceFW/fineweb-edu, sample 100BT (Penedo et al. 2024); needs the extra `hub`
and about 0.3 TB of disk. On a shared file system, prepare it first on a machine without
accelerators (--config.stage=prepare); on a TPU slice every host prepares it on its own disk.
Memory: parameters and optimizer state are split over all devices (fsdp), and of the activations
only the results of matrix products are kept for the backward pass (remat dots).
Size: 1.002B parameters in all, 0.981B without the embedding, 1.002B in matrix products.
Time: 100B tokens are 6.91e20 FLOPs, 485 H100-hours at an assumed 40 % of 989 TFLOP/s: 61 hours on
eight.
Score: not yet measured.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 1280, 57
    c.model.heads, c.model.kv_heads, c.model.head_dim = 10, 2, 128
    c.model.ff_width = 3456
    c.model.qk_norm = True
    c.model.remat = "dots"
    c.data.sources.web = {
        "path": "hf://datasets/HuggingFaceFW/fineweb-edu/sample/100BT/*.parquet",
        "field": "text",
    }
    c.data.vocab_size, c.data.seq_len = 16384, 2048
    c.train.steps, c.train.batch, c.train.microbatches = 190_800, 256, 4  # 524,288 tokens a step
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.z_loss = "muon", 6e-4, 2000, 1e-4
    c.eval.every, c.eval.tokens = 5000, 1_000_000
    c.checkpoint.every = 2000
    c.mesh.data, c.mesh.fsdp = 1, -1  # -1: all devices
    return c
