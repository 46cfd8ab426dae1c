"""slmjax.compare: configs, groups of seeds, warnings, and the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from slmjax import compare
from slmjax.errors import UserError
from slmjax.record.metrics import MetricsWriter


def make(folder, *, seed=0, lr=0.1, gain=0.0, documents=80, heldout=True, two=False):
    """A small finished run; `gain` lowers the loss of every document; that of a second source, where there are `two`, rises by twice it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"seed": seed, "train": {"lr": lr, "steps": 3}, "log": {"every": seed + 1}})
    )
    with MetricsWriter(folder) as writer:
        for step in range(1, 4):
            writer.write(
                step,
                {
                    "train/loss": 3.0 - step - gain,
                    "train/tokens": 100 * step,
                    "train/flops": 1e6 * step,
                },
            )
            writer.write(step, {"eval/bits_per_byte": 2.0 - gain})
        writer.event("finish", 3)
    if heldout:
        shared, own = np.random.default_rng(7), np.random.default_rng(seed + int(1000 * lr))
        keys, sizes = (
            shared.permutation(1000)[:documents].astype(np.uint64),
            shared.integers(100, 900, documents),
        )
        nats = sizes * (
            0.7 + shared.normal(0, 0.1, documents) + own.normal(0, 0.01, documents) - gain
        )
        scores = {"keys": keys, "nats": nats, "bytes": sizes, "tokens": sizes // 4}
        other = {
            "keys": keys + 1000,
            "nats": nats + 3 * gain * sizes,
            "bytes": sizes,
            "tokens": sizes // 4,
        }
        parts = {"a/b": scores, **({"other": other} if two else {})}
        np.savez(
            folder / "heldout.npz",
            **{
                f"{name}/{field}": of
                for name, fields in parts.items()
                for field, of in fields.items()
            },
        )
    return str(folder)


def test_only_differing_fields_are_listed():
    one, other = {"a": 1, "b": [1, 2], "c": None}, {"a": 1, "b": [1, 3], "d": 4.0, "c": None}
    assert compare.differences([one, other, one]) == {
        "b": [[1, 2], [1, 3], [1, 2]],
        "d": [None, 4.0, None],
    }
    assert compare.differences([one, dict(one)]) == {}


def test_true_is_not_one_in_a_config():
    assert compare.differences([{"a": True}, {"a": 1}]) == {"a": [True, 1]}


def test_runs_of_one_config_are_a_group_whatever_the_seed():
    configs = [
        {"seed": s, "train.lr": lr, "log.every": s}
        for s, lr in ((0, 0.1), (0, 0.2), (1, 0.1), (5, 0.2), (0, 0.3))
    ]
    assert compare.group(configs) == [[0, 2], [1, 3], [4]]


def test_one_seed_warns_and_several_do_not(tmp_path):
    runs = [
        make(tmp_path / f"{lr}-{seed}", seed=seed, lr=lr, gain=lr / 4)
        for lr in (0.1, 0.2)
        for seed in (0, 1, 2)
    ]
    single = compare.compare([runs[0], runs[3]])
    assert "One seed only: 0.1-0, 0.2-0" in compare.warning(single)
    assert "seed noise is not in the interval" in compare.verdicts(single)[0]
    several = compare.compare(runs)
    assert several.groups == [[0, 1, 2], [3, 4, 5]]
    assert compare.warning(several) == ""
    assert "seed noise" not in compare.verdicts(several)[0]
    partly = compare.compare([*runs[:3], runs[3]])
    assert "One seed only: 0.2-0." in compare.warning(partly)


def test_damaged_scores_are_one_sentence(tmp_path):
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad", lr=0.2)
    path = tmp_path / "bad" / "heldout.npz"
    content, numbers = path.read_bytes(), np.arange(3)
    draw = np.random.default_rng(0)
    for at in draw.integers(0, len(content), 60):
        changed = bytearray(content)
        changed[at] ^= 1 << draw.integers(8)
        path.write_bytes(changed)
        try:
            compare.compare([good, bad])
        except UserError as error:
            assert "heldout.npz is damaged" in str(
                error
            ) or "no held-out document in common" in str(error)
    for keys in (numbers[:2].astype(np.uint64), numbers.astype("<U3"), np.uint64(7)):
        np.savez(path, **{"a/b/keys": keys, "a/b/nats": numbers * 1.0, "a/b/bytes": numbers})
        with pytest.raises(UserError, match="the scores of a/b are not columns"):
            compare.compare([good, bad])


def test_the_verdict_follows_the_interval(tmp_path):
    base = make(tmp_path / "base", lr=0.1)
    better, same = make(tmp_path / "better", lr=0.2, gain=0.05), make(tmp_path / "same", lr=0.3)
    found = compare.compare([base, better, same])
    assert found.group_differences["total"][1].value == pytest.approx(-0.05 / np.log(2), abs=0.005)
    first, second = compare.verdicts(found)
    assert first.startswith("better scored 0.07") and "less than base on these documents" in first
    assert second.startswith("same and base cannot be told apart")


def test_only_several_seeds_of_both_configs_make_one_better_or_worse(tmp_path):
    old, new = (
        [make(tmp_path / f"{lr}-{s}", seed=s, lr=lr, gain=lr / 4) for s in (0, 1)]
        for lr in (0.1, 0.2)
    )
    for runs in ([*old, *new], [*new, *old]):
        word = "better" if runs == [*old, *new] else "worse"
        (sentence,) = compare.verdicts(compare.compare(runs))
        assert f" is {word} than " in sentence
    for runs in ([old[0], *new], [*old, new[0]], [old[0], new[0]]):
        (sentence,) = compare.verdicts(compare.compare(runs))
        assert (
            "One seed cannot tell" in sentence
            and "better" not in sentence
            and "worse" not in sentence
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_neither_better_nor_worse(tmp_path, capsys, value):
    good, other, broken = (
        make(tmp_path / "good"),
        make(tmp_path / "other", lr=0.2),
        make(tmp_path / "broken", lr=0.3),
    )
    with np.load(tmp_path / "broken" / "heldout.npz") as saved:
        arrays = dict(saved)
    arrays["a/b/nats"][3] = value
    np.savez(tmp_path / "broken" / "heldout.npz", **arrays)
    for runs in ([good, broken], [broken, good], [good, other, broken]):
        status = compare.main([*runs, f"--out={tmp_path / 'c.html'}"])
        said = " ".join(" ".join(capsys.readouterr()).split()).replace(str(tmp_path), "")
        assert status in (0, 2) and "broken" in said and "not finite" in said
        assert "better" not in said and "worse" not in said and "nan" not in said
        assert len(runs) < 3 or "other and good cannot be told apart on these documents" in said


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_without_held_out_text_gets_advice_that_fits(tmp_path, capsys, recorded):
    good, bare = make(tmp_path / "good"), make(tmp_path / "bare", heldout=False)
    if recorded:  # nothing was evaluated
        with MetricsWriter(tmp_path / "bare") as writer:
            writer.event("data", 0, sources={"book": {"heldout_documents": 0}})
    else:  # evaluated, with nothing to score
        np.savez(tmp_path / "bare" / "heldout.npz")
    assert compare.main([good, bare]) == 2
    said = capsys.readouterr().err
    assert (
        "no held-out text" in said
        and "data.sources.NAME.heldout=FILE" in said
        and "eval.every" not in said
    )


def test_names_and_values_that_look_like_markup_are_shown_as_they_are(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    names = ("[bold]a[red]", "b :smile: [x=y]")
    values = ("[a-z]+", "re:^[^/]+[/]")
    for name, value in zip(names, values):
        make(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"data": {"group_by": value}}))
    assert (
        compare.main([*(str(tmp_path / name) for name in names), f"--out={tmp_path / 'c.html'}"])
        == 0
    )
    said = capsys.readouterr().out
    for text in (*names, *values):
        assert text in said


def test_a_run_named_by_the_current_folder_has_that_folders_name(tmp_path, monkeypatch):
    make(tmp_path / "here"), make(tmp_path / "there", lr=0.2)
    monkeypatch.chdir(tmp_path / "here")
    assert [run.name for run in compare.compare([".", "../there"]).runs] == ["here", "there"]


def test_repetitions_of_one_config_are_called_noise(tmp_path):
    found = compare.compare([make(tmp_path / "a", seed=0), make(tmp_path / "b", seed=1)])
    assert found.groups == [[0], [1]]
    assert "one config" in compare.warning(found)


def test_the_page_and_the_terminal_say_the_same(tmp_path, capsys):
    runs = [
        make(tmp_path / "x" / "run", documents=80),
        make(tmp_path / "y" / "run", lr=0.2, gain=0.05, documents=60),
    ]
    assert compare.main([*runs, f"--out={tmp_path / 'c.html'}"]) == 0
    said, page = " ".join(capsys.readouterr().out.split()), (tmp_path / "c.html").read_text()
    for text in (
        "x/run",
        "y/run",
        "train.lr",
        "a/b",
        "documents",
        "20 that some run lacks were left out",
        "seed noise is not in the interval",
    ):
        assert text in said and text in page
    assert (
        page.count("<svg") == 6
        and page.count(">nats per token<") == page.count(">bits per byte<") - 1 == 3
    )  # and the table's head
    assert "http" not in page.replace("http://www.w3.org", "")


def test_many_configs_take_a_row_each_that_fits_a_terminal(tmp_path, capsys):
    rates = (0.1, 0.2, 0.3, 0.4, 0.5)
    runs = [
        make(tmp_path / f"{rate}-{seed}", seed=seed, lr=rate, gain=rate / 4)
        for rate in rates
        for seed in (0, 1)
    ]
    assert compare.main([*runs, f"--out={tmp_path / 'c.html'}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for rate in rates:
        assert [f"{rate}-0,", f"{rate}-1", "train.lr", "=", f"{rate}"] in lines
    total = [line for line in lines if "to" in line and "±" in line][
        : len(rates) - 1
    ]  # the total's come before those of a/b
    gains = [-float(line[line.index("to") - 2]) for line in total]
    assert gains == pytest.approx([(rate - 0.1) / 4 / np.log(2) for rate in rates[1:]], abs=0.01)


def test_the_verdict_is_about_the_sources_that_are_asked_for(tmp_path, capsys):
    runs = [
        make(tmp_path / "old", two=True),
        make(tmp_path / "new", lr=0.2, gain=0.1, two=True),
        f"--out={tmp_path / 'c.html'}",
    ]
    verdict = {"": "more", "a/b": "less", "other": "more", "a/b,other": "more"}
    for sources, word in verdict.items():
        assert compare.main([*runs, *([f"--sources={sources}"] if sources else [])]) == 0
        assert f"{word} than old" in " ".join(capsys.readouterr().out.split())
    assert compare.main([*runs, "--sources=a/b,othr"]) == 2
    assert "old has no held-out text 'othr'. Did you mean 'other'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["good"], "at least two"),
        ([], "at least two"),
        (["good", "missing"], "not a work directory"),
        (["good", "bare"], "lost its heldout.npz"),
        (["good", "torn"], "damaged"),
        (["good", "listed"], "damaged"),
        (["good", "good", "--seed=-1"], "--seed is -1; it must be 0 or more"),
        (["good", "good", "--sources="], "--sources= is empty; give it a value or leave it out"),
        (["good", "good", "--out", ""], "--out= is empty"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "good")
    make(tmp_path / "bare", heldout=False)
    make(tmp_path / "torn")
    (tmp_path / "torn" / "heldout.npz").write_bytes(
        (tmp_path / "torn" / "heldout.npz").read_bytes()[:500]
    )
    make(tmp_path / "listed")
    (tmp_path / "listed" / "config.json").write_text("[]")
    assert compare.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "compare.html").exists()


def test_a_config_that_holds_half_a_surrogate_pair_is_shown(tmp_path):
    runs = [make(tmp_path / "a"), make(tmp_path / "b", lr=0.2)]
    (tmp_path / "b" / "config.json").write_text(
        json.dumps({"train": {"lr": 0.2, "\ud800": "\ud83d"}})
    )
    assert compare.main([*runs, f"--out={tmp_path / 'c.html'}"]) == 0
    assert r"train.\ud800 = " in (tmp_path / "c.html").read_text()


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    runs = [make(tmp_path / "a"), make(tmp_path / "b", lr=0.2)]
    assert compare.main([*runs, f"--out={tmp_path / 'nowhere' / 'c.html'}"]) == 2
    assert "Cannot write" in capsys.readouterr().err and {
        path.name for path in tmp_path.iterdir()
    } == {"a", "b"}


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    words = [make(tmp_path / "a"), make(tmp_path / "b", lr=0.2), f"--out={tmp_path / 'c.html'}"]
    command = (
        f"{sys.executable} -m slmjax.compare {' '.join(words)} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_help_imports_no_jax_and_no_matplotlib():
    code = "import sys\nfrom slmjax import compare\ntry: compare.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('jax', 'matplotlib', 'rich.console') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
