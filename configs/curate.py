r"""Raw text becomes a clean corpus: normalised, filtered, decontaminated, without near-duplicates.

python -m slmjax.launch --config=configs/curate.py --workdir=runs/curated \
    --config.data.sources=~/raw

Leaves documents/<source>/*.jsonl.zst (what the launcher trains on; each record says where it came
from), report.html, dropped.jsonl (each dropped document with its reason), duplicates.jsonl (each
removed one with the one that is kept), and index/, which a later batch may extend with
--config.curate.index.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "curate"
    # `python -m slmjax.launch --help` lists every setting; these three depend on the text.
    # Quality rules of each source by its name, "others" of those that are not named; no rules where
    # none are named. FineWeb's, in FineWeb's order, are for web pages and drop code and formulas:
    # {"web": ("gopher_repetition", "gopher_quality", "c4_any_line_end", "fineweb")}
    c.curate.rules = {}
    # Languages that stay, likewise: {"web": ("en",)}; a source that is not named keeps all.
    # What may be code or formulas stays, and so does text whose language the model is not sure of.
    c.curate.languages = {}
    # Evaluation sets to keep out:
    # {"gsm8k": {"path": "gsm8k/test.jsonl", "fields": ("question", "answer")}}
    c.curate.evals = {}
    return c
