"""Streaming, against the same completion in one piece, and its text against a search for stop strings."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.infer import streaming
from slmjax.infer.engine import Engine
from slmjax.infer.sampling import sampling_of
from slmjax.infer.stops import cut
from slmjax.infer.streaming import SafeText, decode_pieces, stream
from tests.infer.test_engine import ARCH, END, PROMPTS, Words, tiny


@pytest.fixture(scope="module")
def engine():
    return Engine(ARCH, tiny(), {}, Words())


@pytest.fixture(params=[1, 3, 64])
def pieces_of(request, monkeypatch):
    """Every piece after the first has so many steps, whatever the time says."""
    monkeypatch.setattr(streaming, "_next_steps", lambda steps, seconds: request.param)
    return request.param


HOW = [
    {},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 8},
    {"temperature": 1.0, "seed": 7, "stop_ids": range(60, 90)},
    {"temperature": 1.0, "seed": 7, "stop_ids": range(0, 200, 2), "stop": ["th", "wo"]},
]


@pytest.mark.parametrize("prompts", [PROMPTS[2:3], PROMPTS], ids=["one", "five"])
@pytest.mark.parametrize("how", HOW, ids=range(len(HOW)))
def test_the_last_piece_has_the_bits_of_the_decode_loop_in_one_piece(
    engine, prompts, how, pieces_of
):
    settings = {name: value for name, value in how.items() if not name.startswith("stop")}
    more = {name: value for name, value in how.items() if name.startswith("stop")}
    ids = [engine.encode(prompt) for prompt in prompts]
    drawing = sampling_of(len(ids), **settings)
    whole = engine.decode(ids, drawing, 13, **more)
    parts = list(decode_pieces(engine, ids, drawing, 13, **more))
    for mine, theirs in zip(parts[-1], whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # What was given out before stays as it was.
    for part in parts:
        for row, count in enumerate(part.counts):
            np.testing.assert_array_equal(part.tokens[row, :count], whole.tokens[row, :count])
    steps = [part.steps for part in parts]
    assert steps == sorted({*range(1, whole.steps, pieces_of), whole.steps})


def free_run(engine, **how):
    return engine.generate(["The"], max_tokens=24, stop_ids=(), **how)[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_streamed_completion_is_the_generated_one_however_it_ends(engine, seed, pieces_of):
    how = {"temperature": 1.0, "seed": seed}
    free = free_run(engine, **how)
    bytes_so_far = b"".join(engine.token_bytes[token] for token in free.tokens)
    # Stop strings that this run has: ASCII, since its other bytes are seldom characters.
    text = bytes_so_far.decode("ascii", "replace").replace("\ufffd", "\n")
    stops = [part for part in text[6:].split("\n") if part][:3]
    ends = [{"stop_ids": ()}, {"stop_ids": [free.tokens[9]]}, {"stop": stops, "stop_ids": ()}]
    finishes = set()
    for end in ends:
        (whole,) = engine.generate(["The"], max_tokens=24, **how, **end)
        pieces = list(stream(engine, "The", max_tokens=24, **how, **end))
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert (pieces[-1].finish, pieces[-1].end) == (whole.finish, whole.end)
        assert {piece.finish for piece in pieces[:-1]} <= {""}
        decoded = engine.decode(
            [engine.encode("The")],
            sampling_of(1, **how),
            24,
            end.get("stop", ()),
            end.get("stop_ids"),
        )
        logprobs = [value for piece in pieces for value in piece.logprobs]
        np.testing.assert_array_equal(
            np.float32(logprobs), decoded.logprobs[0, : len(whole.tokens)]
        )
        finishes.add(whole.finish)
    assert finishes == {"length", "end", "stop"}


def test_a_program_is_compiled_once_for_each_bucket_and_lends_its_cache_to_the_next_piece(
    engine, monkeypatch
):
    sizes = itertools.cycle([1, 2, 5])
    monkeypatch.setattr(streaming, "_next_steps", lambda steps, seconds: next(sizes))
    list(stream(engine, "The", max_tokens=10))
    before = engine.programs.decode._cache_size(), engine.programs.prefill._cache_size()
    other = Engine(ARCH, tiny(seed=3), {}, Words())
    list(stream(other, "Another", max_tokens=16, temperature=1.0, top_k=3, stop=["a", "b"], seed=2))
    assert before == (engine.programs.decode._cache_size(), engine.programs.prefill._cache_size())
    list(stream(engine, "The", max_tokens=33))
    assert engine.programs.decode._cache_size() == before[0] + 1
    # A donated cache is gone; copies would double the memory.
    batch = engine.prepare([engine.encode("The")], sampling_of(1), 10)
    cache = engine.prefill(batch)
    leaves = jax.tree.leaves(cache)
    state = streaming._compiled_first_state(batch.room, jax.device_put(batch.request))
    engine.programs.decode(
        engine.arch,
        batch.room,
        engine.params,
        engine.buffers,
        cache,
        jax.device_put(batch.request),
        state,
        np.int32(1),
    )
    assert all(leaf.is_deleted() for leaf in leaves)


def test_a_caller_that_asks_no_more_leaves_the_rest_undrawn(engine, monkeypatch):
    monkeypatch.setattr(streaming, "_next_steps", lambda steps, seconds: 1)
    calls = []
    decode = engine.programs.decode
    counted = engine.programs._replace(decode=lambda *all: calls.append(1) or decode(*all))
    monkeypatch.setattr(engine, "programs", counted)
    pieces = stream(engine, "The", max_tokens=10_000, stop_ids=())
    assert len([next(pieces) for _ in range(3)]) == 3
    pieces.close()
    assert len(calls) == 3


def test_a_batch_that_is_filled_up_to_two_rows_streams_as_it_generates(engine):
    """As on a GPU, see the same test of the engine."""
    filled = Engine(ARCH, tiny(), {}, Words())
    filled.programs = filled.programs._replace(rows=2)
    (whole,) = filled.generate(["The"], max_tokens=9, temperature=1.0, seed=4)
    pieces = list(stream(filled, "The", max_tokens=9, temperature=1.0, seed=4))
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens


def test_pieces_grow_while_they_are_fast_and_shrink_while_they_are_slow():
    assert [streaming._next_steps(8, seconds) for seconds in (0.01, 0.05, 0.2)] == [16, 8, 4]
    assert streaming._next_steps(64, 0.001) == 64 and streaming._next_steps(1, 9.0) == 1


few_letters = st.text("ab\u00e4\U0001f600", min_size=1, max_size=5)


@given(
    stops=st.lists(few_letters, max_size=4),
    raw=st.one_of(
        st.text("ab\u00e4\U0001f600", max_size=30).map(str.encode),
        st.binary(max_size=20),
    ),
    data=st.data(),
)
def test_text_that_was_given_out_is_never_taken_back_and_nothing_else_is_held(stops, raw, data):
    """As in the decode loop, the token that completes a stop string is the last one."""
    edges = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    tokens = [raw[a:b] for a, b in itertools.pairwise([0, *edges, len(raw)])]
    text, given_out, seen = SafeText(stops), "", b""
    for i, token in enumerate(tokens):
        seen += token
        stopped = any(stop.encode() in seen for stop in stops)
        if stopped or i == len(tokens) - 1:
            given_out += text.finish(token, stopped=stopped)
            break
        given_out += text.add(token)
        # The longest end that may become a stop string, found by looking at all of them.
        beginnings = {stop.encode()[:n] for stop in stops for n in range(len(stop.encode()))}
        held = max([len(end) for end in beginnings if seen.endswith(end)], default=0)
        safe = seen[: len(seen) - held]
        whole_characters = safe.decode("utf-8", "replace")
        assert whole_characters.startswith(given_out)
        if valid(safe):
            assert given_out == safe.decode()
    expected = cut(seen, stops) if stopped else seen
    assert given_out == expected.decode("utf-8", "replace")


def valid(raw):
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_half_a_character_waits_for_its_other_half():
    text = SafeText([])
    smile = "\U0001f600".encode()
    assert [text.add(bytes([byte])) for byte in smile] == ["", "", "", "\U0001f600"]
    assert text.finish(smile[:2], stopped=False) == "\ufffd"


def test_wrong_arguments_are_refused_as_by_generate(engine):
    for wrong in ({"max_tokens": 0}, {"top_p": 0.0}, {"stop": [""]}, {"stop_ids": [END + 999]}):
        with pytest.raises(UserError):
            next(stream(engine, "a", **({"max_tokens": 4} | wrong)))
