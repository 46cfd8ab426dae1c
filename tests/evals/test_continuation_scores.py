"""Log-likelihoods in batches, against the logits of each sequence alone; text against held-out rows."""

import dataclasses

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals.continuation_scores import ContinuationScorer, EncodedPair, encode_pairs
from slmjax.infer.engine import Engine, bucket
from slmjax.models.architecture import Block
from slmjax.parallel.mesh import device_kind, make_mesh
from slmjax.text.tokenizer import train_bpe
from tests.corpus import WORDS
from tests.infer.test_engine import ARCH, tiny

TOKENIZER = train_bpe([" ".join(WORDS)] * 9, 320)
DEVICE = device_kind(make_mesh({"data": 1}, jax.devices()[:1]))
ONE_BLOCK = dataclasses.replace(ARCH, stack=(((Block(),), 1),), qk_norm=False, output_gate=False)
PARAMS = tiny(ONE_BLOCK)
PAIRS = [
    ("", "the river"),
    ("the blue stone", " carries bread"),
    ("a", " b" * 30),
    ("the river carries " * 30, "seven"),
]


def scorer(longest=64, batch_tokens=256):
    made = ContinuationScorer(ONE_BLOCK, PARAMS, {}, TOKENIZER, DEVICE, longest)
    made.batch_tokens = batch_tokens
    return made


def test_scores_in_batches_are_those_of_each_sequence_alone():
    score = scorer()
    encoded = score.encode(PAIRS)
    scores = score(encoded)
    for number, pair in enumerate(encoded):
        log_p, greedy = score.alone(pair)
        # Sums of up to 60 terms in float32.
        assert scores.log_p[number] == pytest.approx(log_p, rel=1e-5, abs=1e-4)
        assert scores.greedy[number] == greedy
    assert scores.tokens.tolist() == [len(pair.continuation) for pair in encoded]
    assert scores.cut.tolist() == [False] * 3 + [True]


def test_a_greedy_continuation_is_what_the_model_writes_itself():
    engine = Engine(ONE_BLOCK, PARAMS, {}, TOKENIZER)
    contexts = ["the river", "a stone counts", "slowly"]
    written = engine.generate(contexts, max_tokens=3, stop_ids=())
    score = scorer()
    pairs = []
    for context, completion in zip(contexts, written, strict=True):
        ids = TOKENIZER.encode(context)
        pairs.append(score.encode([(context, " x")])[0]._replace(continuation=completion.tokens))
        assert pairs[-1].context == ids
    assert score(pairs).greedy.tolist() == [True] * 3
    others = [pair._replace(continuation=[*pair.continuation[:2], 40]) for pair in pairs]
    assert score(others).greedy.tolist() == [pair.continuation[2] == 40 for pair in pairs]


def test_pairs_are_encoded_together_and_blanks_move_to_the_continuation():
    for context, continuation in [("the river ", "carries"), ("a", " b"), ("x \n", "y"), ("", "z")]:
        (pair,) = encode_pairs(TOKENIZER, [(context, continuation)])
        assert pair.context == TOKENIZER.encode(context.rstrip())
        whole = TOKENIZER.encode(context + continuation)
        assert pair.continuation == whole[len(pair.context) :]


def test_a_continuation_that_does_not_fit_or_has_no_token_is_refused():
    with pytest.raises(UserError, match="has 70 tokens; the model was trained on 64"):
        scorer().encode([("a", " !" * 35)])
    with pytest.raises(UserError, match="belongs to its continuation alone"):
        encode_pairs(TOKENIZER, [("the", "")])


def test_few_shapes_are_compiled():
    score = scorer(batch_tokens=1 << 12)
    lengths = np.random.default_rng(0).integers(2, 64, 500)
    shapes = set()
    for numbers in score._batches(lengths.tolist()):
        rows = 1 << (len(numbers) - 1).bit_length()
        shapes.add((rows, bucket(int(max(lengths[numbers])) - 1)))
    batches = list(score._batches(lengths.tolist()))
    assert sorted(number for numbers in batches for number in numbers) == list(range(500))
    # Three lengths, each with full batches and a last one.
    assert len(shapes) <= 6


def test_a_continuation_in_the_middle_of_a_document_has_no_end_of_text_before_it():
    score = scorer(longest=8)
    ids = TOKENIZER.encode("the river carries the blue stone")[:9]
    whole = score([EncodedPair([], ids[:8])]).log_p[0]
    parts = score([EncodedPair([], ids[:1]), EncodedPair([TOKENIZER.eot], ids[:8], False)])
    assert parts.log_p[1] == pytest.approx(whole, abs=1e-5)
    # A row of training has room for its first token and eight that are predicted.
    inside = EncodedPair(ids[:1], ids[1:], False)
    scores = score([inside])
    assert scores.log_p[0] == pytest.approx(score.alone(inside)[0], abs=1e-5)
    assert not scores.cut[0] and scores.tokens[0] == 8
