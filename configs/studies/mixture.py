r"""Which mixture of sources trains the best model? Small models (proxies) on different mixtures.

python -m slmjax.launch --config=configs/studies/mixture.py:toy --workdir=runs/mixture-toy
python -m slmjax.launch --config=configs/studies/mixture.py --workdir=runs/mixture
python -m slmjax.launch --config=configs/studies/mixture.py:search --workdir=runs/search
python -m slmjax.launch --config=configs/studies/mixture.py:target --workdir=runs/target

toy: 0.2M parameters on three kinds of passages of the embedded textbook, some minutes of a CPU.
Without an argument: three models of 10M parameters, 50M tokens each, on books alone, on the
domains' natural shares, and on equal shares; three seeds. It is a comparison, not an optimum.
search: 32 proxies of 10M parameters and 50M tokens, each on a drawn mixture, for a run of 100M
tokens. The mixture with the lowest predicted loss goes to runs/search/weights.json.
target: 50M parameters on 100M tokens: that mixture, the natural and the uniform one; three seeds.

Data: that of configs/30m.py. The basket that is scored is fixed beforehand and is not the mixture
itself: the held-out text of the six domains, WikiText-2's validation text, solutions of GSM8K's
training problems, and essays, all with the same weight. The search sees one half of its documents,
the target is compared on the other half.
Score: not yet measured.
"""

import os
from pathlib import Path

from slmjax import config

CONFIGS = Path(__file__).parents[1]
# Text that is scored and never trained on.
SCORED = {
    "wikitext": {
        "path": "wikitext2/valid.txt.xz",
        "reader": "slmjax.studies.scored_text:read_articles",
    },
    "solutions": {
        "path": "gsm8k/train.jsonl.xz",
        "reader": "slmjax.studies.scored_text:read_solutions",
    },
    "essays": {"path": "haystack/essays.jsonl.xz"},
}
DOMAINS = ("books", "textbooks", "math", "docs", "code", "reference")


def get_config(part="seminar"):
    if part not in ("toy", "seminar", "search", "target"):
        raise ValueError(f"There is no part '{part}'; there is toy, seminar, search, target.")
    c = _toy() if part == "toy" else _real("50m" if part == "target" else "10m")
    c.stage = "mixture"
    c.eval.every, c.eval.samples = 0, 0
    c.checkpoint.every, c.checkpoint.keep = c.train.steps, 1
    if part == "seminar":
        c.mixture.mixtures = {"natural": "natural", "books": {"books": 1}, "uniform": "uniform"}
        c.mixture.seeds = 3
    if part == "search":
        c.mixture.target_tokens = 100_000_000
    if part == "target":
        c.mixture.mixtures = {
            "natural": "natural",
            "chosen": "runs/search/weights.json",
            "uniform": "uniform",
        }
        c.mixture.seeds, c.mixture.documents = 3, "second half"
    return c


def _toy():
    c = config.load_recipe(str(CONFIGS / "tiny.py"))
    for kind in ("logic", "units", "sequences"):
        c.data.sources[kind] = {"path": f"textbook:{kind}"}
    c.mixture.mixtures = {"natural": "natural", "logic": {"logic": 1}, "uniform": "uniform"}
    c.train.steps = 100
    return c


def _real(size):
    """Return the recipe of a size on the text of configs/30m.py."""
    c = config.load_recipe(str(CONFIGS / f"{size}.py"))
    text = config.load_recipe(str(CONFIGS / "30m.py"))
    c.data.sources = text.data.sources
    c.data.group_by, c.data.heldout = text.data.group_by, text.data.heldout
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()
    for name, source in SCORED.items():
        path = str(root / source["path"])
        c.data.sources[name] = {**source, "path": path, "weight": 0, "heldout": 0.9}
    c.eval.tokens = 1_000_000
    c.train.steps = (100 if size == "50m" else 50) * 1_000_000 // (c.train.batch * c.data.seq_len)
    c.mixture.basket = (*DOMAINS, *SCORED)
    return c
