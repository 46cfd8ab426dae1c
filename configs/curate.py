"""Raw text becomes a clean corpus: normalised, filtered, decontaminated, without near-duplicates, every record with where it came from.

python -m slmjax.launch --config=configs/curate.py --workdir=runs/curated --config.data.sources=~/raw

Leaves documents/<source>/*.jsonl.zst (what the launcher trains on), report.html, dropped.jsonl (each dropped document with its reason),
duplicates.jsonl (each removed one with the one that is kept), and index/, which a later batch may extend with --config.curate.index.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "curate"
    s = c.curate
    # Quality rules of each source by its name, "others" of those that are not named; no rules where
    # none are named. FineWeb's, in FineWeb's order, are for web pages and drop most code and formulas:
    # {"web": ("gopher_repetition", "gopher_quality", "c4_any_line_end", "fineweb")}
    s.rules = {}
    # Languages that stay, likewise: {"web": ("en",)}; a source that is not named keeps all.
    # What may be code or formulas stays, and so does text whose language the model is not sure of.
    s.languages = {}
    s.evals = {}  # evaluation sets to keep out: {"gsm8k": {"path": "gsm8k/test.jsonl", "fields": ("question", "answer")}}
    s.ngram, s.bands, s.rows, s.threshold = 5, 14, 8, 0.75  # near-duplicates: words of a shingle, bands of hashes, Jaccard similarity
    s.max_removed = 0.9  # share of a source that may go as duplicates; beyond it the run stops with an alarm and writes no documents
    s.max_dropped = 0.5  # share of a source that may go for one reason (unreadable, a rule, contaminated); likewise
    s.index = ""  # folder of an index to extend; empty: a new one in the work directory
    s.samples = 5  # dropped documents shown for each reason
    s.processes = 0  # 0: one for each core
    s.beam = ""  # Apache Beam instead, for example --runner=DirectRunner, or DataflowRunner with its options
    return c
