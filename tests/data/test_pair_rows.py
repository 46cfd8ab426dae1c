"""Dialogues and pairs from files to batches: kinds, masks, whole rows, held-out questions."""

import json
import pickle
import re

import numpy as np
import pytest

from slmjax import config as configs
from slmjax.data import heldout
from slmjax.data.answer_mask import answer_mask
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.embedded_text import with_files
from slmjax.data.heldout_rows import heldout_batches
from slmjax.data.pair_plan import PairPlan
from slmjax.data.prepare import prepare
from slmjax.data.prepare_stage import facts, plan_settings
from slmjax.data.prepared import preparation_summary
from slmjax.data.whole_rows import fill_rows
from slmjax.errors import UserError
from slmjax.text.chat_template import chat_ids, dialogue_parts, pair_parts
from slmjax.text.conversations import dialogue_of, pair_of
from slmjax.text.sources import parse_sources
from slmjax.train.answer_evaluation import questions_in_turn
from tests.data.test_prepare import settings

SENTENCE = "the quick brown fox jumps over a lazy dog and runs into seven green hills"
WORDS = SENTENCE.split()


def text_of(draw, most):
    return " ".join(draw.choice(WORDS, int(draw.integers(1, most))))


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def chats(count, seed=0, turns=3):
    draw = np.random.default_rng(seed)
    for number in range(count):
        messages = []
        for turn in range(int(draw.integers(1, turns + 1))):
            messages.append({"role": "user", "content": f"{number} {turn} {text_of(draw, 9)}"})
            messages.append({"role": "assistant", "content": text_of(draw, 12)})
        yield {"messages": messages}


def pairs(count, seed=1, prompts=None):
    """Yield pairs about `prompts` different questions; None: as many as pairs."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        asked = number % (prompts or count)
        chosen = f"{text_of(draw, 9)} good {number}"
        rejected = f"{text_of(draw, 14)} bad {number}"
        yield pair(f"question {asked}", chosen, rejected)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    sources = {
        "chats": {"path": write(folder / "chats.jsonl", chats(120)), "kind": "chat"},
        "pairs": {
            "path": write(folder / "pairs.jsonl", pairs(150, prompts=60)),
            "kind": "pairs",
            "heldout": 0.2,
        },
    }
    data = settings(sources, vocab_size=400, heldout=0.1)
    return prepare(data, seed=0, cache=folder / "cache", processes=1)


def plan_of(prepared, kind=BatchPlan, seq_len=96, batch=4, names=("chats", "pairs"), **more):
    train = {name: prepared.train[name] for name in names}
    return kind(train=train, seq_len=seq_len, batch=batch, steps=50, seed=3, **more)


def batch_of(plan, step=0):
    return plan.unpack(plan.read(step, range(plan.batch)))


def test_documents_are_the_template_of_their_records(prepared):
    tokenizer = prepared.tokenizer
    expected = set()
    for record in chats(120):
        expected.add(tuple(tokenizer.sequence(*dialogue_parts(dialogue_of(record)))))
    both = [*prepared.train["chats"], *prepared.heldout["chats"]]
    assert {tuple(document.tolist()) for document in both} == expected
    expected = {
        tuple(tokenizer.sequence(*pair_parts(pair_of(record)))) for record in pairs(150, prompts=60)
    }
    both = [*prepared.train["pairs"], *prepared.heldout["pairs"]]
    assert {tuple(document.tolist()) for document in both} <= expected


def test_a_prompt_is_either_held_out_or_trained_on(prepared):
    def asked(shards):
        texts = [prepared.tokenizer.decode(document.tolist()) for document in shards]
        return {re.search(r"question (\d+)", text)[1] for text in texts}

    train, heldout = asked(prepared.train["pairs"]), asked(prepared.heldout["pairs"])
    assert heldout and not train & heldout
    heldout_count, train_count = len(prepared.heldout["pairs"]), len(prepared.train["pairs"])
    assert 0.1 < heldout_count / (heldout_count + train_count) < 0.3


def test_every_document_is_whole_in_one_row_of_an_epoch(prepared):
    plan = plan_of(prepared)
    for name, rows in zip(plan.train, plan.row_plans, strict=True):
        shards = plan.train[name]
        for epoch in (0, 1):
            seen = []
            for row in range(rows.rows_per_epoch):
                spans = rows.row(epoch * rows.rows_per_epoch + row)
                assert sum(span.length for span in spans) <= 96
                seen += [span.doc for span in spans]
                assert all(span.offset == 0 for span in spans)
            used = np.flatnonzero(shards.lengths <= 96)
            assert set(used.tolist()) <= set(seen) and len(seen) == len(set(seen))


def test_epochs_have_the_same_rows_in_another_order(prepared):
    for rows in plan_of(prepared).row_plans:
        count = rows.rows_per_epoch
        first = [rows.row(row) for row in range(count)]
        second = [rows.row(count + row) for row in range(count)]
        assert first != second and sorted(first) == sorted(second)


def test_long_dialogues_end_behind_an_answer_and_long_pairs_are_left_out(prepared):
    plan = plan_of(prepared, seq_len=64)
    chat_rows, pair_rows = plan.row_plans
    assert chat_rows.cut and "cut behind an answer" in chat_rows.left_out()
    assert pair_rows.dropped and not pair_rows.cut
    ids = chat_ids(prepared.tokenizer)
    newline = prepared.tokenizer.encode("\n")
    for row in range(chat_rows.rows_per_epoch):
        for doc, _, length in chat_rows.row(row):
            tokens = plan.train["chats"].read(doc, 0, length)[:-1]
            assert tokens[-2] == ids.end and tokens[-1:].tolist() == newline
            assert answer_mask(tokens[None], ids)[0, -2]


def test_weights_are_on_answers_and_their_ends(prepared):
    plan = plan_of(prepared, names=("chats",))
    ids = chat_ids(prepared.tokenizer)
    for step in range(5):
        batch = batch_of(plan, step)
        trained = batch["targets"][batch["weights"] > 0]
        ends = batch["targets"] == ids.end
        assert 0 < batch["weights"].mean() < 0.8
        assert not np.isin(trained, [ids.start, ids.eot]).any()
        assert batch["weights"][ends].any()
        assert set(np.unique(batch["weights"])) == {0, 1}


def test_a_pair_is_two_segments_with_the_same_prompt(prepared):
    plan = plan_of(prepared, PairPlan, names=("pairs",))
    ids = chat_ids(prepared.tokenizer)
    shapes = plan.shapes(0)
    for step in range(6):
        batch = batch_of(plan, step)
        assert {name: array.shape for name, array in batch.items()} == {
            name: field.shape for name, field in shapes.items()
        }
        for row in range(plan.batch):
            count = int(batch["pairs"][row].sum())
            assert count and batch["segments"][row].max() == 2 * count
            for pair in range(count):
                first = batch["segments"][row] == 2 * pair + 1
                second = batch["segments"][row] == 2 * pair + 2
                chosen, rejected = batch["tokens"][row][first], batch["tokens"][row][second]
                assert chosen[0] == rejected[0] == ids.eot
                prompt = int(batch["answers"][row][first].argmax()) + 1
                np.testing.assert_array_equal(chosen[:prompt], rejected[:prompt])
                for half in (first, second):
                    answered = batch["targets"][row][half & (batch["answers"][row] > 0)]
                    assert answered[-1] == ids.end and (answered == ids.end).sum() == 1
                assert batch["weights"][row][second].sum() == 0
                np.testing.assert_array_equal(
                    batch["weights"][row][first], batch["answers"][row][first]
                )


def test_earlier_answers_of_a_prompt_are_no_part_of_a_pair(tmp_path):
    records = []
    for number in range(40):
        earlier = f"Human: a b {number}\n\nAssistant: early answer"
        prompt = f"{earlier}\n\nHuman: more\n\nAssistant:"
        records.append(pair(prompt, f"good {number}", f"bad {number}"))
    source = {"path": write(tmp_path / "p.jsonl", records), "kind": "pairs"}
    data = settings({"p": source}, vocab_size=300)
    prepared = prepare(data, seed=0, cache=tmp_path / "cache", processes=1)
    plan = plan_of(prepared, PairPlan, names=("p",), seq_len=256)
    batch = batch_of(plan)
    text = prepared.tokenizer.decode(batch["targets"][batch["answers"] > 0].tolist())
    assert "good" in text and "bad" in text and "early" not in text


@pytest.mark.parametrize("nll_on", ["chosen", "sequence"])
def test_sequence_reduction_gives_each_pair_the_weight_one(prepared, nll_on):
    plan = plan_of(prepared, PairPlan, names=("pairs",), nll_on=nll_on, nll_reduction="sequence")
    batch = batch_of(plan)
    np.testing.assert_allclose(batch["weights"].sum(), batch["pairs"].sum(), rtol=1e-6)
    token = batch_of(plan_of(prepared, PairPlan, names=("pairs",), nll_on=nll_on))
    np.testing.assert_array_equal(token["weights"] > 0, batch["weights"] > 0)
    if nll_on == "sequence":
        # All of the chosen dialogue, without the target behind its last token.
        chosen = batch["segments"] % 2 == 1
        assert (token["weights"] > 0).sum() == chosen.sum() - batch["pairs"].sum()


def test_sequence_reduction_next_to_other_sources_is_refused(prepared):
    with pytest.raises(UserError, match="count as much as one token of 'chats'; use"):
        plan_of(prepared, PairPlan, nll_reduction="sequence")


def test_sources_take_turns_to_give_the_questions_of_the_end(tmp_path):
    sources = {}
    for name, count in (("a", 3), ("b", 12), ("none", 0)):
        records = [{"prompt": f"{name} {n}", "response": f"yes {n}"} for n in range(20)]
        held = [{"prompt": f"held {name} {n}", "response": f"no {n}"} for n in range(count)]
        held_out = write(tmp_path / f"held_{name}.jsonl", held) if held else 0.0
        file = write(tmp_path / f"{name}.jsonl", records)
        sources[name] = {"path": file, "kind": "chat", "heldout": held_out}
    prepared = prepare(settings(sources), seed=0, cache=tmp_path / "cache", processes=1)

    def asked(count):
        questions = questions_in_turn(list(prepared.heldout.values()), count, 96)
        texts = [prepared.tokenizer.decode(question.ids) for question in questions]
        return [re.search(r"held (\w)", text)[1] for text in texts]

    assert asked(1) == ["a"] and asked(4) == ["a", "b", "a", "b"]
    assert asked(10) == [*"ababab", *"bbbb"] and len(asked(99)) == 15


def test_plans_are_pure_and_survive_a_pickle(prepared):
    plan = plan_of(prepared, PairPlan)
    again = pickle.loads(pickle.dumps(plan))
    for step in (0, 7, 49):
        for name, array in batch_of(plan, step).items():
            np.testing.assert_array_equal(array, batch_of(again, step)[name])
        assert plan.fingerprint(step) == again.fingerprint(step)
    other = plan_of(prepared, PairPlan, nll_on="sequence")
    assert other.fingerprint(3) != plan.fingerprint(3)
    assert other.fingerprint(0) == plan.fingerprint(0)


def test_rows_of_pairs_and_of_dialogues_mix(prepared):
    plan = plan_of(prepared, PairPlan, weights={"chats": 0.5, "pairs": 0.5})
    kinds = set()
    for step in range(4):
        batch = batch_of(plan, step)
        for row in range(plan.batch):
            is_pairs = batch["pairs"][row].any()
            kinds.add(bool(is_pairs))
            if not is_pairs:
                assert not batch["answers"][row].any() and batch["weights"][row].any()
    assert kinds == {True, False}


def test_held_out_answers_have_documents_and_pairs_have_two(prepared):
    shards = prepared.heldout["pairs"]
    scored = {}
    for batch in heldout_batches(shards, seq_len=96, batch=2):
        counted = batch["documents"] >= 0
        np.testing.assert_array_equal(counted, batch["weights"] > 0)
        for document, count in zip(*np.unique(batch["documents"][counted], return_counts=True)):
            assert document not in scored
            scored[int(document)] = int(count)
    used = np.flatnonzero(shards.lengths <= 96)
    assert sorted(scored) == sorted([*(2 * used), *(2 * used + 1)])


def test_at_least_one_held_out_dialogue_that_fits_is_scored(tmp_path):
    held = [{"prompt": "long", "response": "a b c " * 90}, {"prompt": "short", "response": "d"}]
    held_file = write(tmp_path / "held.jsonl", held)
    source = {"path": write(tmp_path / "c.jsonl", chats(20)), "kind": "chat", "heldout": held_file}
    prepared = prepare(settings({"c": source}), seed=0, cache=tmp_path / "cache", processes=1)
    batches = heldout_batches(prepared.heldout["c"], seq_len=96, batch=2, max_tokens=1)
    assert len(batches) == 1


def asked_and_others(folder):
    """Files of pairs and of dialogues, which ask the 60 questions of the pairs and 200 others."""
    asked = list(pairs(60, prompts=60))
    same = [{"instruction": pair["prompt"].upper() + "?", "output": "yes"} for pair in asked]
    chat_file = write(folder / "chats.jsonl", [*same, *chats(200, seed=5)])
    return write(folder / "pairs.jsonl", asked), chat_file


@pytest.mark.parametrize("has_heldout_file", [False, True])
def test_a_question_of_a_held_out_pair_is_held_out_of_dialogues(tmp_path, has_heldout_file):
    pair_file, chat_file = asked_and_others(tmp_path)
    held_out = 0.0
    if has_heldout_file:
        records = [{"prompt": f"other {n}", "response": f"fine {n}"} for n in range(5)]
        held_out = write(tmp_path / "heldout.jsonl", records)
    data = settings(
        {
            "pairs": {"path": pair_file, "kind": "pairs", "heldout": 0.2},
            "chats": {"path": chat_file, "kind": "chat", "heldout": held_out},
        },
        vocab_size=350,
    )
    prepared = prepare(data, seed=0, cache=tmp_path / "cache", processes=1)
    held = len(prepared.heldout["pairs"])
    assert held >= 5
    assert len(prepared.train["chats"]) == 260 - held
    # Both are counted where people see it.
    assert prepared.manifest["sources"]["chats"]["heldout_elsewhere"] == held
    assert prepared.manifest["sources"]["pairs"]["heldout_elsewhere"] == 0
    assert f"{held} of chats not trained on: another source" in preparation_summary(prepared)
    assert facts(prepared, {})["chats"]["heldout_elsewhere"] == held


def test_a_question_is_held_out_of_dialogues_with_more_groups_than_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "KEPT", 8)
    monkeypatch.setattr(heldout, "PRUNED_AT", 1)
    monkeypatch.setattr(heldout, "MAX_BYTES", 200)
    pair_file, chat_file = asked_and_others(tmp_path)
    data = settings(
        {
            "pairs": {"path": pair_file, "kind": "pairs", "heldout": 0.4},
            "chats": {"path": chat_file, "kind": "chat", "heldout": 0.0},
        },
        vocab_size=350,
    )
    prepared = prepare(data, seed=0, cache=tmp_path / "cache", processes=1)
    assert len(prepared.train["chats"]) == 260 - len(prepared.heldout["pairs"])


def test_dialogues_that_mostly_ask_held_out_questions_lose_them(tmp_path):
    asked = list(pairs(60, prompts=60))
    pair_source = {"path": write(tmp_path / "p.jsonl", asked), "kind": "pairs", "heldout": 0.2}
    alone = prepare(settings({"pairs": pair_source}), seed=0, cache=tmp_path / "1", processes=1)
    texts = [alone.tokenizer.decode(ids.tolist()) for ids in alone.heldout["pairs"]]
    held = {re.search(r"question \d+", text).group() for text in texts}
    records = [{"prompt": question, "response": "yes"} for question in sorted(held)]
    records += [{"prompt": f"other {n}", "response": f"fine {n}"} for n in range(3)]
    chat_source = {"path": write(tmp_path / "c.jsonl", records), "kind": "chat", "heldout": 0.0}
    data = settings({"pairs": pair_source, "chats": chat_source})
    both = prepare(data, seed=0, cache=tmp_path / "2", processes=1)
    assert len(both.train["chats"]) == 3 and len(held) > 3
    assert not any("another source holds out" in text for text in both.manifest["warnings"])


def test_dialogues_next_to_a_prepared_folder_get_a_warning(tmp_path):
    pair_file, chat_file = asked_and_others(tmp_path)
    pair_source = {"path": pair_file, "kind": "pairs", "heldout": 0.2}
    first = prepare(settings({"pairs": pair_source}), seed=0, cache=tmp_path / "1", processes=1)
    again = {"path": str(first.folder / "pairs"), "kind": "pairs"}
    chat_source = {"path": chat_file, "kind": "chat"}
    for sources, warned in (({"pairs": again}, False), ({"p": again, "c": chat_source}, True)):
        prepared = prepare(settings(sources), seed=0, cache=tmp_path / "2", processes=1)
        warnings = prepared.manifest["warnings"]
        assert any("in a prepared folder are not known" in text for text in warnings) is warned


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"kind": "chats"}, "kind is 'chats'; expected one of text, chat, pairs.*'chat'"),
        ({"kind": "chat", "score": "stars"}, "score is 'stars', but a source of the kind 'chat'"),
        (
            {"kind": "pairs", "field": "q"},
            "field is 'q', but a source of the kind 'pairs' has none",
        ),
        ({"kind": "chat", "heldout": 1.5}, "heldout is 1.5; expected files, or a share"),
        ({"kind": "chat", "heldout": 1}, "heldout is 1; expected files, or a share"),
        ({"kind": "chat", "heldout": True}, "heldout is True; expected files, or a share"),
        ({"kind": "chat", "weight": -1}, "weight is -1; expected a number of 0 or more"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entry, words):
    path = write(tmp_path / "c.jsonl", chats(9))
    with pytest.raises(UserError, match=words):
        prepare(settings({"c": {"path": path, **entry}}), seed=0, cache=tmp_path / "x", processes=1)


def test_the_textbook_has_held_out_text_of_its_own(tmp_path):
    for heldout_part in (0.5, "heldout.jsonl"):
        entry = {"path": "textbook:pairs", "kind": "pairs", "heldout": heldout_part}
        with pytest.raises(
            UserError, match=r"p\.heldout: 'textbook:pairs' has held-out text of its"
        ):
            with_files(parse_sources({"p": entry}), tmp_path, 0)


def test_a_run_on_sources_of_weight_zero_is_refused(prepared):
    sources = {name: {"path": "x.jsonl", "weight": 0} for name in ("chats", "pairs")}
    config = configs.freeze(configs.override(configs.base(), [f"data.sources={sources}"]))
    with pytest.raises(UserError, match="every source has weight 0"):
        plan_settings(config.data, config.train, prepared, seed=0, cuts=None)


def test_files_without_answers_or_questions_are_refused_by_name(tmp_path):
    cases = {
        "asked": {"messages": [{"role": "user", "content": "hm"}]},
        "said": {"messages": [{"role": "assistant", "content": "hm"}]},
        "strange": {"speech": "hm"},
    }
    for name, record in cases.items():
        records = [{**record, "id": number} for number in range(30)]
        path = write(tmp_path / f"{name}.jsonl", records)
        data = settings({name: {"path": path, "kind": "chat"}})
        with pytest.raises(UserError, match=f"data.sources.{name}") as caught:
            prepare(data, seed=0, cache=tmp_path / "cache", processes=1)
        assert f"{name}.jsonl line 1" in str(caught.value)


def test_rows_are_filled_tightly():
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 60, 500)
    rows = fill_rows(lengths, 64)
    assert sorted(doc for row in rows for doc in row) == np.flatnonzero(lengths).tolist()
    sizes = [int(lengths[row].sum()) for row in rows]
    assert max(sizes) <= 64 and len(rows) <= 1.05 * lengths.sum() / 64
