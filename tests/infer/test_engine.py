"""Generation, against the model's full forward pass without a cache and against each prompt alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError
from slmjax.infer import programs as device
from slmjax.infer.engine import Engine, bucket
from slmjax.infer.sampling import sampling_of
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import parse_block
from slmjax.parallel.mesh import make_mesh

NOPE = parse_block("attention rope=False")
END = 256
WORDS = ["one ", "two ", "th", "ree", " \u00e4\u00f6", "stop", "a" * 300, "\n"]


class Words:
    """A tokenizer of 256 bytes, a few longer tokens, and end-of-text; `encode` uses bytes only."""

    eot, ends, vocab_size = END, (END,), 257 + len(WORDS)

    def encode(self, text):
        return list(text.encode())

    def token_bytes(self):
        return [bytes([b]) for b in range(256)] + [b""] + [word.encode() for word in WORDS]


ARCH = Architecture(
    vocab_size=384,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ff_width=48,
    stack=(((Block(),), 2), ((NOPE,), 1)),
    qk_norm=True,
    output_gate=True,
    tied=False,
    rope_theta=100.0,
)
PROMPTS = ["", "a", "The quick brown", "b" * 14, "0123456789abcde"]  # 0 to 15 tokens, one bucket


def tiny(arch=ARCH, seed=0):
    """Random weights, far enough from the initial ones that the next token depends on all before it."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        fan_in = {
            "scale": 0,
            "embedding": 1,
            "out": arch.heads * arch.head_dim,
            "down": arch.ff_width,
        }.get(name, arch.width)
        return jnp.asarray(
            rng.normal(fan_in == 0, 0.1 if fan_in == 0 else 1.5 * fan_in**-0.5, shape.shape),
            jnp.float32,
        )

    return jax.tree_util.tree_map_with_path(draw, shapes(arch))


def shapes(arch):
    return jax.eval_shape(functools.partial(lm.init, arch), jax.random.key(0))


@pytest.fixture(scope="module")
def engine():
    return Engine(ARCH, tiny(), {}, Words())


def full_logprobs(params, tokens, arch=ARCH):
    """Log-probability of every next token by one forward pass without a cache: [T, vocabulary of the tokenizer]."""
    row = np.zeros(
        (3, 1, 32), np.int32
    )  # tokens, segments, positions; padded, so that all lengths share a program
    row[:, 0, : len(tokens)] = [tokens, np.ones(len(tokens)), np.arange(len(tokens))]
    return np.asarray(
        full_forward(arch, params, dict(zip(("tokens", "segments", "positions"), row)))
    )[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def full_forward(arch, params, batch):
    hidden, _ = lm.forward(arch, params, {}, batch)
    return jax.nn.log_softmax(lm.logits(arch, params, hidden)[0, :, : Words.vocab_size])


def greedy(engine, prompts=PROMPTS, max_tokens=12, stop=(), stop_ids=None):
    ids = [engine.encode(p) for p in prompts]
    return engine.decode(ids, sampling_of(len(prompts)), max_tokens, stop, stop_ids)


def test_every_generated_token_is_what_the_full_forward_pass_finds_likeliest_with_the_same_log_probability(
    engine,
):
    out = greedy(engine)
    for prompt, tokens, logprobs, count in zip(PROMPTS, out.tokens, out.logprobs, out.counts):
        sequence = engine.encode(prompt) + [int(t) for t in tokens[:count]]
        full = full_logprobs(tiny(), sequence)[-count - 1 : -1]
        np.testing.assert_array_equal(tokens[:count], full.argmax(axis=1))
        np.testing.assert_allclose(
            logprobs[:count], full[np.arange(count), tokens[:count]], rtol=1e-5, atol=1e-5
        )


def test_logits_of_cached_decode_and_of_prefill_in_pieces_are_those_of_the_full_forward_pass():
    params, T = tiny(), 11
    tokens = np.random.default_rng(0).integers(0, Words.vocab_size, (2, T))
    full = np.stack([full_logprobs(params, row) for row in tokens])
    forward = jax.jit(lm.forward, static_argnums=0)
    for pieces in ([T], [1] * T, [5, 1, 5]):
        cache, start, found = lm.init_cache(ARCH, 2, 16), 0, []
        for n in pieces:
            at = np.tile(np.arange(start, start + n), (2, 1))
            batch = {
                "tokens": tokens[:, start : start + n],
                "segments": np.ones_like(at),
                "positions": at,
            }
            hidden, out = forward(ARCH, params, {}, batch, cache=cache)
            cache = out.cache
            found.append(
                jax.nn.log_softmax(lm.logits(ARCH, params, hidden)[..., : Words.vocab_size])
            )
            start += n
        np.testing.assert_allclose(np.concatenate(found, axis=1), full, rtol=1e-5, atol=1e-5)


def test_unequal_prompts_together_complete_as_each_alone_also_across_length_buckets(engine):
    prompts = [*PROMPTS, "long enough for the next bucket"]
    together = greedy(engine, prompts)
    for i, prompt in enumerate(prompts):
        alone = greedy(engine, [prompt])
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])
        np.testing.assert_allclose(together.logprobs[i], alone.logprobs[0], rtol=1e-5, atol=1e-5)


def test_sampled_completions_do_not_depend_on_the_batch(engine):
    how = {"max_tokens": 12, "temperature": 1.0, "top_k": 50, "top_p": 0.9}
    together = engine.generate(PROMPTS, seed=[7] * len(PROMPTS), **how)
    assert together == [engine.generate([prompt], seed=7, **how)[0] for prompt in PROMPTS]
    numbered = engine.generate(["a"] * 5, seed=7, **how)
    assert len({c.text for c in numbered}) == 5  # the same prompt in other rows draws anew
    assert engine.generate(["other", "a", "prompts", "in", "it"], seed=7, **how)[1] == numbered[1]
    few_at_once = Engine(ARCH, tiny(), {}, Words(), max_batch=1)
    assert few_at_once.generate(["a"] * 5, seed=7, **how) == numbered


def test_a_batch_that_is_filled_up_to_two_rows_completes_as_one_row(engine):
    """As on a GPU, where products of a single row are slower than those of two."""
    filled = Engine(ARCH, tiny(), {}, Words())
    filled.programs = filled.programs._replace(rows=2)
    assert filled.prepare([[END, 1]], sampling_of(1), 4).tokens.shape == (2, 16)
    out, alone = greedy(filled, PROMPTS[2:3]), greedy(engine, PROMPTS[2:3])
    np.testing.assert_array_equal(out.tokens, alone.tokens)
    np.testing.assert_allclose(out.logprobs, alone.logprobs, rtol=1e-5, atol=1e-5)


def test_new_prompts_settings_and_weights_compile_nothing_new(engine):
    engine.generate(PROMPTS, max_tokens=12)
    programs = (engine.programs.prefill._cache_size(), engine.programs.decode._cache_size())
    other = Engine(ARCH, tiny(seed=9), {}, Words())
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    engine.generate(["new", "prompts", "of other", "length", "!", "and number"], max_tokens=16)
    engine.generate(
        PROMPTS,
        max_tokens=1,
        temperature=0.7,
        top_k=3,
        top_p=0.5,
        stop=["a", "stop"],
        stop_ids=[1, 2, END],
        seed=5,
    )
    other.generate([[1, 2], [3], [4], [5], [6]], max_tokens=9, seed=[1, 2, 3, 4, 5])
    assert not compiled
    assert (engine.programs.prefill._cache_size(), engine.programs.decode._cache_size()) == programs
    jax.jit(lambda x: x + 1)(1)
    assert compiled  # the listener does hear
    jax.monitoring.unregister_event_duration_listener(listen)
    assert [bucket(n) for n in (0, 1, 16, 17, 256, 257, 500, 896, 1025, 1281)] == [
        16,
        16,
        16,
        32,
        256,
        384,
        512,
        896,
        1280,
        1536,
    ]


def scripted(following):
    """An engine whose model is a table of which token follows which: the mixers write nothing, the head looks up the last token."""
    arch = dataclasses.replace(ARCH, tied=False, width=384, stack=(((Block(),), 1),), qk_norm=False)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(arch))
    head = np.zeros((384, 384), np.float32)
    for token, following_token in following.items():
        head[token, following_token] = 1.0
    params |= {
        "embedding": jnp.eye(384),
        "head": jnp.array(head),
        "final_norm": {"scale": jnp.ones(384)},
    }
    return Engine(arch, params, {}, Words())


def word(text):
    return 257 + WORDS.index(text)


def chain(*tokens):
    """Each token follows the one before."""
    return dict(itertools.pairwise(tokens))


COUNT = chain(ord("a"), word("one "), word("two "), word("th"), word("ree"), ord(" "), END)


@pytest.mark.parametrize(
    ("max_tokens", "stop", "text", "finish", "count"),
    [
        (16, [], "one two three ", "end", 5),
        (16, ["four", "a"], "one two three ", "end", 5),  # the prompt's own "a" does not count
        (5, [], "one two three ", "length", 5),
        (2, [], "one two ", "length", 2),
        (16, ["o thr", "ree "], "one tw", "stop", 4),  # "o thr" is complete first
        (16, ["three "], "one two ", "stop", 5),
        (16, ["e t", "ne t"], "o", "stop", 2),  # both end at once: the longer counts
        (16, ["one"], "", "stop", 1),
        (2, ["two"], "one ", "stop", 2),  # at the last token, stop goes before length
        (2, ["three"], "one two ", "length", 2),
    ],
)
def test_completions_end_at_the_end_of_text_at_max_tokens_or_before_the_first_stop_string(
    counting, max_tokens, stop, text, finish, count
):
    completion = counting.generate(["a", [word("ree")]], max_tokens=max_tokens, stop=stop)[0]
    assert (completion.text, completion.finish, len(completion.tokens)) == (text, finish, count)
    assert completion.tokens == list(COUNT.values())[:count]


@pytest.fixture(scope="module")
def counting():
    return scripted(COUNT)


def test_the_loop_leaves_as_soon_as_every_row_has_stopped(counting):
    out = counting.decode(
        [counting.encode("a"), counting.encode([word("two ")])], sampling_of(2), 16
    )
    assert out.steps == 6  # five tokens and the end of text of the longest
    assert (list(out.counts), list(out.finish)) == ([5, 3], [device.END] * 2)
    assert (
        counting.decode(
            [counting.encode("a"), counting.encode([word("th")])], sampling_of(2), 16, ["two"]
        ).steps
        == 3
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@given(stop_ids=st.lists(st.integers(0, Words.vocab_size - 1), max_size=250, unique=True))
@example(stop_ids=[])
@example(stop_ids=[END])
def test_a_row_stops_at_the_first_id_of_the_set_as_if_its_free_run_were_cut_there(
    engine, temperature, stop_ids
):
    """The prompts have unequal lengths, and so have the completions; the bits are those of a run that no id stops."""
    room, ids = 12, [engine.encode(prompt) for prompt in PROMPTS]
    drawing = sampling_of(len(ids), temperature=temperature, seed=3)
    free = engine.decode(ids, drawing, room, stop_ids=())
    assert set(free.counts) == {room} and set(free.finish) == {device.LENGTH}
    found = engine.decode(ids, drawing, room, stop_ids=stop_ids)
    for row, tokens in enumerate(free.tokens):
        hits = np.flatnonzero(np.isin(tokens, stop_ids))
        count = hits[0] if len(hits) else room
        assert (found.counts[row], found.finish[row]) == (
            count,
            device.END if len(hits) else device.LENGTH,
        )
        read = slice(0, count + 1)  # with the id that ended it
        np.testing.assert_array_equal(found.tokens[row, read], tokens[read])
        np.testing.assert_array_equal(found.logprobs[row, read], free.logprobs[row, read])
    assert found.steps == min(room, max(found.counts) + 1)


def test_a_completion_says_which_id_ended_it_and_a_stop_string_goes_on_beside_the_ids(counting):
    prompts = ["a", [word("two ")], [word("ree")]]

    def ends(**how):
        found = counting.generate(prompts, max_tokens=16, **how)
        return [(one.text, one.finish, one.end) for one in found]

    three, space = word("ree"), ord(" ")
    assert ends() == [("one two three ", "end", END), ("three ", "end", END), (" ", "end", END)]
    assert ends(stop_ids=[three, space]) == [
        ("one two th", "end", three),
        ("th", "end", three),
        ("", "end", space),
    ]
    assert ends(stop_ids=[three, END], stop=["two"]) == [
        ("one ", "stop", None),
        ("th", "end", three),
        (" ", "end", END),
    ]
    assert [found[1:] for found in ends(stop_ids=[])] == [("length", None)] * 3


def test_a_token_of_many_bytes_and_bytes_that_are_no_utf8_become_text():
    engine = scripted(chain(ord("a"), word("a" * 300), 0xC3, ord("b"), word("\n"), END))
    assert engine.generate(["a", "a"], max_tokens=16)[0].text == "a" * 300 + "\ufffdb\n"
    assert engine.generate(["a", "a"], max_tokens=16, stop=["a" * 250])[0].text == ""
    assert (
        engine.generate(["a", "a"], max_tokens=16, stop=["aa\u00e3", "b"])[0].text
        == "a" * 300 + "\ufffd"
    )


def test_bfloat16_compute_generates_what_its_own_full_forward_pass_finds_likely():
    arch = dataclasses.replace(ARCH, compute="bfloat16")
    engine = Engine(arch, tiny(), {}, Words())
    out = greedy(engine, ["The quick brown"])
    sequence = engine.encode("The quick brown") + list(out.tokens[0])
    full = full_logprobs(tiny(), sequence, arch)[-13:-1]
    # both round to 8 bits at every layer, in another order
    np.testing.assert_allclose(out.logprobs[0], full[np.arange(12), out.tokens[0]], atol=0.15)
    assert (full.max(axis=1) - out.logprobs[0] < 0.3).all()


def test_a_model_split_over_devices_generates_the_same(engine):
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])

    def place(leaf):
        spec = (
            P(None, "fsdp", "tensor")
            if leaf.ndim > 2
            else P("tensor", "fsdp")
            if leaf.shape == (384, 32)
            else P()
        )
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded = Engine(ARCH, jax.tree.map(place, tiny()), {}, Words())
    with jax.set_mesh(mesh):
        out = greedy(sharded)
    whole = greedy(engine)
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    np.testing.assert_allclose(out.logprobs, whole.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_p": 2.0}, "top_p"),
        ({"stop": [""]}, "stop string is empty"),
        ({"prompts": [[1, 999]]}, "token 999"),
        ({"seed": [1, 2, 3]}, "seed has 3"),
        ({"stop_ids": [END, 265]}, "stop_ids has 265"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(engine, wrong, words):
    with pytest.raises(UserError, match=words):
        engine.generate(**({"prompts": ["a"], "max_tokens": 4} | wrong))


def test_a_tokenizer_larger_than_the_model_is_refused_and_no_prompts_are_no_completions(engine):
    assert engine.generate([], max_tokens=4) == []
    small = dataclasses.replace(ARCH, vocab_size=128)
    with pytest.raises(UserError, match="265 tokens, the model 128"):
        Engine(small, {}, {}, Words())
