"""A small file of text, and the recipe that trains on it; imports no JAX, as tests of data and curation do not."""

import json
import random
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "tests" / "recipes" / "smallest.py"
WORDS = [
    "river",
    "stone",
    "blue",
    "seven",
    "carries",
    "under",
    "morning",
    "bread",
    "counts",
    "slowly",
    "the",
    "a",
    "of",
    "to",
    "and",
]


def write_corpus(path, seed=0, documents=400):
    """Lines of JSON with sentences of a few words."""
    draw = random.Random(seed)
    texts = (" ".join(draw.choices(WORDS, k=draw.randrange(8, 90))) for _ in range(documents))
    path.write_text("".join(json.dumps({"text": f"{text}."}) + "\n" for text in texts))
    return path
