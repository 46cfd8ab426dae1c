"""The orpo bench: splits by prompt, pairs as ids, the scorer of the peer, and the table."""

import argparse
import collections
import dataclasses
import json

import numpy as np
import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.bench import __main__ as bench
from slmjax.bench import orpo_comparison, orpo_ours, orpo_sides, pair_setting, preference_table
from slmjax.bench.pair_splits import SPLITS, TokenPairs, split_of, split_pairs, token_pairs
from slmjax.bench.peers import trl_orpo
from slmjax.data.pair_plan import PairPlan
from slmjax.data.prepare import prepare
from slmjax.data.prepare_stage import plan_settings, prepared_text
from slmjax.errors import UserError
from slmjax.models.pattern import from_config
from slmjax.text.conversations import pair_of, prompt_group
from slmjax.text.records import Source
from tests.corpus import ROOT
from tests.data.test_pair_rows import pairs, write
from tests.data.test_prepare import settings


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """(folder of the splits, counts) of two sources, of which one asks some questions of both."""
    folder = tmp_path_factory.mktemp("splits")
    first = list(pairs(300, prompts=150))
    # The same questions in capitals, and a broken line.
    second = [{**pair, "prompt": pair["prompt"].upper()} for pair in first[:150]]
    sources = [
        Source("first", (write(folder / "first.jsonl", first),), kind="pairs"),
        Source(
            "second", (write(folder / "second.jsonl", [*second, {"prompt": "?"}]),), kind="pairs"
        ),
    ]
    return folder / "out", split_pairs(sources, folder / "out"), sources


def groups(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [prompt_group(fields, pair_of(fields).prompt) for fields in records]


def test_a_prompt_is_in_one_split_of_all_sources(split):
    folder, counts, _ = split
    of_split = {name: set() for name in SPLITS}
    for name in SPLITS:
        for source in ("first", "second"):
            found = groups(folder / name / f"{source}.jsonl")
            assert len(found) == counts[source][name]
            of_split[name] |= set(found)
    assert not of_split["train"] & of_split["test"]
    assert not of_split["train"] & of_split["dev"]
    assert not of_split["dev"] & of_split["test"]
    assert sum(counts["first"][name] for name in SPLITS) == 300
    assert sum(counts["second"][name] for name in SPLITS) == 150
    assert counts["second"]["bad"] == 1 and counts["first"]["bad"] == 0


def test_splits_are_as_large_as_they_say_and_need_the_group_alone(split, tmp_path):
    counted = collections.Counter(split_of(f"prompt {number}") for number in range(20_000))
    for name, share in SPLITS.items():
        # Five standard errors.
        assert abs(counted[name] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
    folder, _, sources = split
    split_pairs(sources[:1], tmp_path)
    for name in SPLITS:
        file = f"{name}/first.jsonl"
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_a_source_that_leaves_a_split_empty_is_named(tmp_path):
    source = Source("few", (write(tmp_path / "few.jsonl", pairs(1)),), kind="pairs")
    with pytest.raises(UserError, match=r"data\.sources\.few: none of its pairs are for the split"):
        split_pairs([source], tmp_path / "out")


@pytest.fixture(scope="module")
def held(split, tmp_path_factory):
    """(prepared pairs, held-out pairs as ids)."""
    folder, _, _ = split
    sources = {}
    for name in ("first", "second"):
        files = {part: str(folder / part / f"{name}.jsonl") for part in SPLITS}
        sources[name] = {"path": files["train"], "heldout": [files["test"]], "kind": "pairs"}
    cache = tmp_path_factory.mktemp("cache")
    prepared = prepare(settings(sources, vocab_size=300), seed=0, cache=cache, processes=1)
    return prepared, token_pairs(prepared.heldout, 4096, folder, "test")


def test_ids_are_those_of_the_chat_template_and_answers_end_with_their_mark(split, held):
    folder, _, _ = split
    prepared, found = held
    assert len(found.prompts) == sum(map(len, prepared.heldout.values())) > 20
    end = prepared.tokenizer.special["<|im_end|>"]
    texts = set()
    for name in ("first", "second"):
        for line in (folder / "test" / f"{name}.jsonl").read_text().splitlines():
            pair = pair_of(json.loads(line))
            texts |= {pair.chosen, pair.rejected}
    for ids, is_answer in found.dialogues():
        answer = ids[is_answer].tolist()
        assert answer[-1] == end
        assert prepared.tokenizer.decode(answer[:-1]) in texts
        assert ids[0] == prepared.tokenizer.special["<|endoftext|>"]
        prompt = prepared.tokenizer.decode(ids[~is_answer].tolist())
        assert "assistant" in prompt
    expected = len(set(groups(folder / "test" / "first.jsonl")))
    assert len(set(found.prompts[found.sources == 0].tolist())) == expected
    # One question in both sources is one prompt.
    both = [set(found.prompts[found.sources == number].tolist()) for number in (0, 1)]
    assert both[0] & both[1]
    short = token_pairs(prepared.heldout, int(np.median(found.lengths)) * 2, folder, "test")
    assert 0 < len(short.prompts) < len(found.prompts)
    with pytest.raises(UserError, match="no pair of the split test fits into a row"):
        token_pairs(prepared.heldout, 8, folder, "test")


def test_rows_of_text_come_on_top_of_the_same_pairs(split, tmp_path):
    folder, _, _ = split
    text = write(tmp_path / "text.jsonl", [{"text": f"{record}"} for record in pairs(50)])
    sources = {"text": {"path": text, "weight": 0.0, "kind": "text"}}
    for name in ("first", "second"):
        files = {part: str(folder / part / f"{name}.jsonl") for part in SPLITS}
        sources[name] = {"path": files["train"], "heldout": [files["test"]], "kind": "pairs"}
    recipe = configs.load_recipe(f"{ROOT}/configs/tiny.py")
    recipe.task, recipe.data.sources = "orpo", sources
    recipe.data.seq_len, recipe.train.batch, recipe.data.cache = 1024, 8, str(tmp_path / "cache")
    config = configs.freeze(recipe)
    prepared = prepared_text(config.data, str(tmp_path / "run"))

    def setting(text_rows):
        options = {"splits": folder, "split": "test", "epochs": 2.0, "text_rows": text_rows}
        return pair_setting.PairSetting(config, prepared, **options)

    plain, mixed = setting(0), setting(2)
    assert mixed.facts() == plain.facts()
    assert plain.config.train.batch == 8 and mixed.config.train.batch == 10
    weights = {name: of["weight"] for name, of in mixed.config.data.sources.items()}
    assert sum(weights.values()) == pytest.approx(1) and weights["text"] == pytest.approx(0.2)
    plan = PairPlan(
        **plan_settings(mixed.config.data, mixed.config.train, prepared, seed=0, cuts=None)
    )
    rows = dict(zip(plan.train, plan.row_plans, strict=True))
    pace = [weights[name] / rows[name].rows_per_epoch for name in ("first", "second")]
    assert pace[0] == pytest.approx(pace[1])
    assert mixed.steps * 10 * weights["first"] == pytest.approx(
        2 * rows["first"].rows_per_epoch, rel=0.05
    )
    without = dataclasses.replace(
        prepared, train={k: v for k, v in prepared.train.items() if k != "text"}
    )
    with pytest.raises(UserError, match="no running text to read"):
        pair_setting.PairSetting(
            dataclasses.replace(
                config,
                data=dataclasses.replace(
                    config.data, sources={k: v for k, v in sources.items() if k != "text"}
                ),
            ),
            without,
            splits=folder,
            split="test",
            epochs=2.0,
            text_rows=2,
        )


def test_pairs_are_read_back_as_they_were_written(held, tmp_path):
    _, found = held
    found.save(tmp_path / "pairs.npz")
    again = TokenPairs.load(tmp_path / "pairs.npz")
    assert again.names == found.names
    for name in TokenPairs._fields[:-1]:
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def made_pairs(prompts, sources, chosen=3, rejected=5):
    """Return pairs of one-token prompts with answers of these lengths."""
    count = len(prompts)
    lengths = np.tile([chosen + 1, rejected + 1], count)
    is_answer = np.concatenate([[False] + [True] * (length - 1) for length in lengths])
    ids = np.arange(len(is_answer), dtype=np.int32)
    return TokenPairs(
        ids, is_answer, lengths, np.array(prompts), np.array(sources), ("easy", "hard")
    )


def test_scores_are_means_over_seeds_and_pairs_with_paired_intervals():
    made = made_pairs(prompts=range(40), sources=[0] * 20 + [1] * 20)
    right, wrong = np.tile([3.0, 10.0], (40, 1)), np.tile([6.0, 5.0], (40, 1))
    hits = [preference_table.hits_of(made, nats) for nats in (right, wrong)]
    assert hits[0].tolist() == [1] * 40 and hits[1].tolist() == [0] * 40
    tie = preference_table.hits_of(made, np.tile([3.0, 5.0], (40, 1)))
    assert tie.tolist() == [0.5] * 40
    mixed = np.r_[np.ones(20), np.zeros(20)]
    scores = preference_table.subset_scores(made, tie, [mixed, hits[0]], [hits[0], mixed])
    assert list(scores) == ["easy", "hard", "all"]
    assert scores["easy"]["ours"] == (1, 1, 1) and scores["hard"]["ours"].value == 0.5
    assert scores["all"]["ours"].value == 0.75 and scores["all"]["before"].value == 0.5
    # The two sides have equal hits on every pair: the interval of the difference has no width.
    low, high = scores["all"]["ours"][1:]
    assert low < 0.75 < high and scores["all"]["difference"] == (0, 0, 0)
    assert scores["all"]["longer"] == 0 and scores["all"]["shorter"] == 1
    assert scores["all"]["pairs"] == scores["all"]["prompts"] == 40
    row = preference_table.score_rows(scores)[-1]
    assert row["ours"].startswith("75.0 (") and row["ours minus TRL"] == "0.0 (0.0 to 0.0)"


def test_intervals_resample_prompts_and_not_pairs():
    hits = np.repeat([0.0, 1.0], 20)
    widths = []
    for prompts in (range(40), np.repeat(range(4), 10)):
        made = made_pairs(prompts, sources=[0] * 40)
        share = preference_table.subset_scores(made, hits, [hits], [hits])["all"]["ours"]
        widths.append(share.high - share.low)
    assert widths[1] > 2 * widths[0]


def test_batches_of_the_peer_read_each_pair_equally_often():
    how = trl_orpo.Training(steps=7, pairs_per_step=4.3, rate=1.0, seed=1, odds_weight=0.1)
    batches = trl_orpo.training_batches(10, how)
    assert [len(batch) for batch in batches] == [4, 5, 4, 4, 5, 4, 4]
    counts = np.bincount(np.concatenate(batches), minlength=10)
    assert counts.tolist() == [3] * 10
    assert batches != trl_orpo.training_batches(10, how._replace(seed=2))
    halves = trl_orpo.training_batches(10, how._replace(microbatches=2))
    assert len(halves) == 14
    assert [a + b for a, b in zip(halves[::2], halves[1::2])] == batches


def arguments(*words):
    parser = argparse.ArgumentParser()
    orpo_comparison.add_arguments(parser)
    return parser.parse_args(["--init_from=none", "--work=none", *words])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seeds=0"], "--seeds=0: expected at least 1"),
        (["--trl_microbatches=0"], "--trl_microbatches=0"),
        (["--epochs=-1"], r"--epochs=-1\.0: expected 0 or more"),
    ],
)
def test_an_option_out_of_range_is_named(words, named, monkeypatch):
    monkeypatch.setattr(trl_orpo, "check_installed", lambda: None)
    with pytest.raises(UserError, match=named):
        orpo_comparison.run(arguments(*words))


@pytest.mark.parametrize("word", ["--rates=1e-3,0", "--trl_rates=x", "--rates=inf"])
def test_rates_are_positive_numbers(word, capsys):
    with pytest.raises(SystemExit):
        arguments(word)
    assert "invalid comma-separated list of positive numbers value" in capsys.readouterr().err


def test_a_missing_library_and_another_task_are_named(monkeypatch):
    monkeypatch.setattr(trl_orpo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the peer needs torch and transformers and trl"):
        orpo_comparison.run(arguments())
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"config\.task is 'lm'; this bench compares 'orpo'"):
        pair_setting.odds_weight(configs.freeze(configs.base()))


def test_a_work_folder_of_another_comparison_is_refused(tmp_path):
    setup = orpo_sides.Setup(
        config=configs.freeze(configs.base()),
        init_from="parent",
        work=tmp_path,
        pairs=(),
        texts=(),
        epochs=0.0,
        odds_weight=0.1,
        trl_microbatches=1,
        text_rows=0,
        trust=(),
    )
    whose = orpo_comparison.claim_work(setup, (), "a", "b")
    assert orpo_comparison.claim_work(setup, (), "a", "b") == whose
    # The rate and the seed are chosen by the bench.
    config = configs.override(configs.base(), ["train.lr=7.0", "seed=7"])
    other = dataclasses.replace(setup, config=configs.freeze(config))
    assert orpo_comparison.claim_work(other, (), "a", "b") == whose
    with pytest.raises(UserError, match="holds a comparison with another init_from, pairs; give"):
        orpo_comparison.claim_work(setup, (), "c", "d")
    config = configs.override(configs.base(), ["train.steps=5000"])
    other = dataclasses.replace(setup, config=configs.freeze(config), epochs=2.0)
    with pytest.raises(UserError, match="with another config, epochs; give"):
        orpo_comparison.claim_work(other, (), "a", "b")


def test_a_rate_that_forgets_the_text_is_not_chosen():
    rows = [
        {"rate": 1e-3, "dev, %": 60.0, "text, ratio": 1.001},
        {"rate": 3e-3, "dev, %": 60.0, "text, ratio": 1.02},
        {"rate": 1e-2, "dev, %": 70.0, "text, ratio": 1.03},
        {"rate": 3e-2, "fault": "it failed"},
    ]
    assert orpo_comparison.best_row("ours", rows)["rate"] == 1e-3
    without_text = [{"rate": row["rate"], "dev, %": row["dev, %"]} for row in rows[:3]]
    assert orpo_comparison.best_row("trl", without_text)["rate"] == 1e-2
    with pytest.raises(UserError, match="every rate of ours makes running text more than 2% worse"):
        orpo_comparison.best_row("ours", rows[2:])
    with pytest.raises(UserError, match="no rate of ours trained: it failed"):
        orpo_comparison.best_row("ours", rows[3:])


def test_the_final_part_takes_the_rates_of_its_own_grid(tmp_path):
    made = object.__new__(orpo_comparison.SideBySide)
    made.options, made.whose = arguments("--rates=1e-3", "--trl_rates=2e-3"), "own"
    made.grid_file = tmp_path / "grid.json"
    assert made._chosen_rates() == {"ours": 1e-3, "trl": 2e-3}
    made.options.rates = [1e-3, 3e-3]
    with pytest.raises(UserError, match="run --part=grid first"):
        made._chosen_rates()
    grid = {"whose": "own", "rates": {"ours": 3e-3, "trl": 1.0}}
    made.grid_file.write_text(json.dumps(grid))
    assert made._chosen_rates() == {"ours": 3e-3, "trl": 2e-3}
    made.whose = "another"
    with pytest.raises(UserError, match="is of another comparison"):
        made._chosen_rates()


@pytest.fixture(scope="module")
def base(split, tmp_path_factory):
    """(config of a run on the pairs, its tiny parent, a folder with the parent's weights)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    splits, _, _ = split
    folder = tmp_path_factory.mktemp("base")
    texts = write(folder / "texts.jsonl", [{"text": f"{record}"} for record in pairs(200)])
    words = [f"--config={ROOT}/configs/tiny.py", f"--workdir={folder}/parent"]
    fields = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "ff_width": 48}
    words += [f"--config.model.{name}={value}" for name, value in fields.items()]
    words += ["--config.train.steps=8", "--config.train.warmup=1", "--config.data.heldout=0.1"]
    words += [
        f"--config.data.sources={texts}",
        "--config.data.vocab_size=300",
        "--config.train.batch=8",
    ]
    assert launch.main([*words, "--config.eval.samples=0"]) == 0
    parent = str(folder / "parent")
    recipe = configs.load_recipe(f"{ROOT}/configs/orpo.py", init_from=parent)
    recipe.data.sources = {}
    for name in ("first", "second"):
        files = {part: str(splits / part / f"{name}.jsonl") for part in SPLITS}
        source = {"path": files["train"], "heldout": [files["test"]], "kind": "pairs"}
        recipe.data.sources[name] = source
    recipe.train.steps, recipe.train.warmup, recipe.train.batch = 4, 0, 8
    config = configs.freeze(recipe)
    vocab = orpo_ours.export_weights(parent, str(folder / "first.npz"))["vocab"]
    return config, parent, folder, vocab


@pytest.mark.slow
@pytest.mark.parity
def test_both_scorers_agree_on_the_same_weights(base, split):
    config, parent, folder, vocab = base
    splits, _, _ = split
    assert from_config(config.model, vocab).qk_norm
    prepared = prepared_text(config.data, str(folder / "run"), init_from=parent)
    held = token_pairs(prepared.heldout, config.data.seq_len, splits, "test")
    by_jax = orpo_ours.score(configs.to_dict(config), parent, str(folder / "run"))["nats"]
    model = trl_orpo.load_weights(config, vocab, str(folder / "first.npz"))
    by_torch = trl_orpo.nats_of_answers(model, held)
    tokens = held.answer_tokens()
    assert by_torch.shape == tokens.shape and len(tokens) > 20
    np.testing.assert_allclose(by_torch / tokens, by_jax / tokens, atol=1e-4, rtol=0)
    assert np.ptp(by_torch / tokens) > 0.1


@pytest.mark.slow
@pytest.mark.parity
def test_the_peer_learns_from_the_ids_that_it_is_given(base, split):
    pytest.importorskip("trl")
    config, parent, folder, vocab = base
    splits, _, _ = split
    prepared = prepared_text(config.data, str(folder / "run"), init_from=parent)
    train = token_pairs(prepared.train, config.data.seq_len, splits, "train")
    how = trl_orpo.Training(4, pairs_per_step=20.5, rate=3e-3, seed=0, odds_weight=1.0)
    nats = []
    for microbatches in (0, 1, 2):
        model = trl_orpo.load_weights(config, vocab, str(folder / "first.npz"))
        if microbatches:
            tokenizer = str(prepared.folder / "tokenizer.json")
            training = how._replace(microbatches=microbatches)
            assert trl_orpo.train_trl(model, train, training, tokenizer) > 0
        nats.append(trl_orpo.nats_of_answers(model, train))
    before, after, halves = nats
    assert after[:, 0].mean() < 0.98 * before[:, 0].mean()
    # TRL's means are over a microbatch, so halves are near and not the same.
    np.testing.assert_allclose(halves, after, rtol=0.05)
    assert not np.array_equal(halves, after)


@pytest.mark.slow
@pytest.mark.parity
def test_the_command_compares_both_and_goes_on_where_it_was_stopped(base, tmp_path, capsys):
    pytest.importorskip("trl")
    _, parent, _, _ = base
    files = {"pairs": write(tmp_path / "pairs.jsonl", pairs(120, prompts=60))}
    words = ["orpo", f"--config={ROOT}/configs/orpo.py", f"--init_from={parent}", "--seeds=1"]
    words += [f"--work={tmp_path}/work", f"--out={tmp_path}/out.json", "--epochs=0.5"]
    words += [f"--config.data.sources=pairs={files['pairs']}"]
    words += ["--config.data.sources.pairs.kind=pairs", "--config.train.batch=8"]
    words += ["--config.train.warmup=0"]
    assert bench.main([*words, "--part=split"]) == 0
    (counts,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    splits = tmp_path / "work" / "splits"
    lines = {part: (splits / part / "pairs.jsonl").read_text() for part in SPLITS}
    assert {part: len(lines[part].splitlines()) for part in SPLITS}.items() <= counts.items()
    grid = ["--part=grid", "--rates=1e-3,1e-2", "--trl_rates=1e-4"]
    assert bench.main([*words, *grid]) == 0
    rates = json.loads((tmp_path / "out.json").read_text())["rates"]
    assert [row["side"] for row in rates] == ["ours", "ours", "trl"]
    assert sum(row.get("chosen") == "yes" for row in rates) == 2
    finished = list((tmp_path / "work" / "results").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    assert bench.main([*words, "--part=both", *grid[1:]]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["rates"] == rates
    assert {part: (splits / part / "pairs.jsonl").read_text() for part in SPLITS} == lines
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    (all_pairs,) = [row for row in result["rows"] if row["preferred, %"] == "all"]
    assert all_pairs["pairs"] == result["test"]["heldout_pairs"] > 10
    ours, theirs = result["runs"]
    assert ours["test, %"] == pytest.approx(ours["by its own evaluation"], abs=5)
    assert theirs["rate"] == 1e-4 and result["scorers_test"]["difference"] < 1e-4
    capsys.readouterr()
    assert bench.main([*words, *grid, "--epochs=1"]) == 2
    assert "holds a comparison with another epochs" in capsys.readouterr().err
