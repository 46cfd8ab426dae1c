"""300M parameters: 200B tokens of FineWeb-Edu, then 50B that anneal on better text.

python -m slmjax.launch --config=configs/300m.py --workdir=gs://BUCKET/300m
python -m slmjax.launch --config=configs/300m.py --config.train.microbatches=16  # one GPU of 80 GB

Run the first command on a host with eight GPUs, or on every host of a TPU slice.
Data: HuggingFaceFW/fineweb-edu, sample 350BT (Penedo et al. 2024); cosmopedia-v2 of
HuggingFaceTB/smollm-corpus (28B tokens); finemath-4plus of HuggingFaceTB/finemath (about 10B
tokens). The last phase takes 15B and 7.5B of the last two, so nothing is seen twice. The recipe
needs the extra `hub` and about 0.8 TB of disk: shards hold two bytes a token. On a shared file
system, prepare it first on a machine without accelerators (--config.stage=prepare); on a TPU slice
every host prepares it on its own disk (docs/hardware.md).
Phases: a step has 524,288 tokens. In the last 95,367 of 476,837 steps (50.0B tokens) the learning
rate decays, and the batches mix web text, synthetic textbooks and mathematics (annealing on better
data: Hu et al. 2024, MiniCPM).
Size: 302.1M parameters in all, 289.5M without the embedding, 302.0M in matrix products.
Time: 250B tokens are 5.62e20 FLOPs, 394 H100-hours at an assumed 40 % of 989 TFLOP/s: 49 hours on
eight.
Score: not yet measured.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.model.vocab_size = 16384
    c.model.width, c.model.layers = 768, 46
    c.model.heads, c.model.kv_heads, c.model.head_dim = 6, 2, 128
    c.model.ff_width = 2048
    c.model.qk_norm = True
    c.data.sources.web = {
        "path": "hf://datasets/HuggingFaceFW/fineweb-edu/sample/350BT/*.parquet",
        "field": "text",
    }
    c.data.sources.textbooks = {
        "path": "hf://datasets/HuggingFaceTB/smollm-corpus/cosmopedia-v2/*.parquet",
        "field": "text",
    }
    c.data.sources.mathematics = {
        "path": "hf://datasets/HuggingFaceTB/finemath/finemath-4plus/*.parquet",
        "field": "text",
    }
    c.data.phases = (
        {"tokens": 200e9, "weights": {"web": 1.0}, "rate": (1, 1)},
        {
            "tokens": 50e9,
            "weights": {"web": 0.55, "textbooks": 0.3, "mathematics": 0.15},
            "rate": (1, 0),
        },
    )
    c.data.vocab_size, c.data.seq_len = 16384, 2048
    c.train.batch, c.train.microbatches = 256, 4  # 524,288 tokens a step
    c.train.steps, c.train.schedule = 0, "phases"  # as the phases say
    c.train.optimizer, c.train.lr, c.train.warmup, c.train.z_loss = "muon", 1e-3, 1000, 1e-4
    c.eval.every, c.eval.tokens = 5000, 1_000_000
    c.checkpoint.every = 2000
    return c
