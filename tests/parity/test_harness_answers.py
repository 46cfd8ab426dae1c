"""GSM8K's answers are extracted and judged as lm-eval's own code does, and pairs are split as it does.

Needs lm-eval, see docs/development.md. Without it the file is skipped.
"""

import importlib.util
import json
import lzma
import os
import random
from pathlib import Path

import pytest

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("not installed: lm-eval; it is in .ci/harness.txt", allow_module_level=True)

import lm_eval
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.filters.extraction import RegexFilter

from slmjax.evals.continuation_scores import encode_pairs
from slmjax.evals.number_answers import (
    lm_eval_flexible,
    lm_eval_match,
    lm_eval_strict,
)
from slmjax.text.tokenizer import train_bpe

pytestmark = pytest.mark.parity

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))
SOLUTIONS = SHARED / "gsm8k" / "example_model_solutions.jsonl.xz"
PIECES = [
    "#### ",
    "####",
    "-",
    "$",
    ",",
    ".",
    "18",
    "7",
    " ",
    "\n",
    "1,234",
    "is",
    "½",
    "٣",
    "-$5.",
]
GOLDS = ["so\n#### 18", "#### 1,234", "#### -5", "#### 7", "a #### 3 #### $18."]


def task():
    """lm-eval's own gsm8k."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
    return yaml.safe_load((folder / "gsm8k.yaml").read_text())


def filters():
    """{name: lm-eval's filter} of the task."""
    made = {}
    for entry in task()["filter_list"]:
        settings = {k: v for k, v in entry["filter"][0].items() if k != "function"}
        made[entry["name"]] = RegexFilter(**settings)
    return made


def check(texts, golds):
    (metric,) = task()["metric_list"]
    options = {k: metric[k] for k in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    ours = {"strict-match": lm_eval_strict, "flexible-extract": lm_eval_flexible}
    for name, theirs in filters().items():
        extracted = [answers[0] for answers in theirs.apply([[text] for text in texts], [])]
        assert [ours[name](text) for text in texts] == extracted
        for answer, gold in zip(extracted, golds, strict=True):
            right = exact_match_hf_evaluate([answer], [gold], **options)["exact_match"]
            assert lm_eval_match(answer, gold) == bool(right), (answer, gold)


def test_hostile_texts_are_read_and_judged_as_lm_eval_does():
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(9))) for _ in range(5276)]
    check(texts, [draw.choice(GOLDS) for _ in texts])


def test_the_published_solutions_are_read_and_judged_as_lm_eval_does():
    if not SOLUTIONS.exists():
        pytest.skip(f"{SOLUTIONS} is absent; set SLMJAX_SHARED to the shared data")
    texts, golds = [], []
    with lzma.open(SOLUTIONS, "rt", encoding="utf8", newline="\n") as file:
        lines = file.read().split("\n")
    for line in filter(None, lines):
        record = json.loads(line)
        for value in record.values():
            if isinstance(value, dict):
                # With lm-eval's mark, since these end in "A: 18".
                texts += [value["solution"], value["solution"].replace("\nA: ", "\n#### ")]
                golds += [record["ground_truth"].replace("\nA: ", "\n#### ")] * 2
    assert len(texts) == 2 * 5276
    check(texts, golds)


def test_pairs_are_encoded_as_lm_eval_encodes_them():
    class Harness(TemplateLM):
        eot_token_id = 0
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return TOKENIZER.encode(string)

    words = ["the", "river", " ", "  ", "\n", "carries", "s", "\u00a0", "'s", "12"]
    TOKENIZER = train_bpe(["the river carries the river's 12 stones"] * 9, 330)
    draw, harness = random.Random(1), Harness()
    pairs = []
    while len(pairs) < 1000:
        context, continuation = (
            "".join(draw.choices(words, k=draw.randrange(1, 7))) for _ in range(2)
        )
        if harness._encode_pair(context, continuation)[1]:
            pairs.append((context, continuation))
    ours = encode_pairs(TOKENIZER, pairs)
    assert [(pair.context, pair.continuation) for pair in ours] == [
        harness._encode_pair(*pair) for pair in pairs
    ]
