r"""Raw text becomes a clean corpus: normalised, filtered, decontaminated, without near-duplicates.

python -m slmjax.launch --config=configs/curate.py --workdir=runs/curated \
    --config.data.sources=~/raw

The work directory gets documents/<source>/*.jsonl.zst (what to train on; each record of text says
where it came from), report.html, dropped.jsonl (each dropped document with its reason),
duplicates.jsonl (each removed near-duplicate with the document that is kept instead), and index/,
which a later batch of text may extend with --config.curate.index.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "curate"
    # `python -m slmjax.launch --help` lists every setting; these three depend on the text.
    # {name of a source: its quality rules}; "others" stands for every source that is not named.
    # Without an entry for it a source has no rules.
    # FineWeb's rules, in FineWeb's order, are for web pages; they drop code and formulas:
    # {"web": ("gopher_repetition", "gopher_quality", "c4_any_line_end", "fineweb")}
    c.curate.rules = {}
    # {name of a source, or "others": languages that stay}, such as {"web": ("en",)}. Without an
    # entry for it a source keeps all.
    # Text stays in any case if it may be code or formulas, or if its language is uncertain.
    c.curate.languages = {}
    # Evaluation sets to keep out:
    # {"gsm8k": {"path": "gsm8k/test.jsonl", "fields": ("question", "answer")}}
    c.curate.evals = {}
    return c
