"""The command line of generation: what it prints, and one sentence for each mistake."""

import io
import itertools
import shlex
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from slmjax import launch
from slmjax.bench import __main__ as bench
from slmjax.checkpoint import Checkpoints
from slmjax.config import base, freeze, to_dict
from slmjax.generate import main, parse_options, read_prompts
from slmjax.infer.engine import Completion, Engine
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.text.tokenizer import EOT, train_bpe
from tests import runs


@pytest.fixture(scope="module")
def workdir(
    corpus, tmp_path_factory
):  # with `corpus`, compiled programs are kept in the session's folder
    """A work directory with two checkpoints of a tiny model with constant weights."""
    config, folder = base(), tmp_path_factory.mktemp("run")
    config.update_from_flattened_dict(
        {
            "model.width": 16,
            "model.heads": 2,
            "model.kv_heads": 1,
            "model.head_dim": 8,
            "model.ff_width": 16,
        }
    )
    config.model.layers, config.data.seq_len = 1, 20
    tokenizer = train_bpe(["a b c d e f"], 260, (EOT,))  # as that of an older run
    tokenizer.save(folder / "tokenizer.json")
    arch = from_config(freeze(config).model, 384)
    shapes = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    checkpoints = Checkpoints(str(folder))
    for step in (30, 40):
        checkpoints.save(
            step,
            {"params": params},
            {"config": to_dict(freeze(config)), "tokenizer": tokenizer.sha256},
        )
    checkpoints.wait()
    checkpoints.close()
    return types.SimpleNamespace(path=str(folder), engine=Engine(arch, params, {}, tokenizer))


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\n")
    assert read_prompts(parse_options(["--checkpoint=x", f"--prompts={tmp_path}/prompts.txt"])) == [
        "first",
        "second",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufefffirst\n"))
    assert read_prompts(parse_options(["--checkpoint=x"])) == ["first"]
    (tmp_path / "twice.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbffirst\n")  # the second is text
    assert read_prompts(parse_options(["--checkpoint=x", f"--prompts={tmp_path}/twice.txt"])) == [
        "\ufefffirst"
    ]


def test_prompts_of_the_command_line_and_of_a_file_are_completed_and_the_speed_goes_to_stderr(
    workdir, tmp_path, capsys
):
    (tmp_path / "prompts.txt").write_text("third one\n\n")
    argv = [
        "--step=30",
        "--prompt=first",
        "--prompt=",
        f"--prompts={tmp_path}/prompts.txt",
        "--max_tokens=8",
    ]
    assert main([f"--checkpoint={workdir.path}", *argv]) == 0
    out, err = capsys.readouterr()
    expected = workdir.engine.generate(["first", "", "third one"], max_tokens=8, temperature=0.8)
    assert out == "".join(
        f"{prompt}{c.text}\n" for prompt, c in zip(["first", "", "third one"], expected)
    )
    assert f"step 30: {sum(len(c.tokens) for c in expected)} tokens, " in err
    assert "warning" not in err


def test_every_option_reaches_the_engine_and_a_length_beyond_training_is_warned_of(
    workdir, capsys, monkeypatch
):
    calls = []
    ten = [Completion(" then", [1] * 10, "stop")]
    monkeypatch.setattr(
        Engine, "generate", lambda self, prompts, **how: calls.append((prompts, how)) or ten
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("from stdin\n"))
    options = "--max_tokens=15 --temperature=0.5 --top_k=3 --top_p=0.25 --stop=x --stop=yz --seed=9"
    assert main([f"--checkpoint={workdir.path}", *options.split()]) == 0
    how = {
        "max_tokens": 15,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "stop": ["x", "yz"],
        "seed": 9,
    }
    assert calls == [(["from stdin"], how)]
    out, err = capsys.readouterr()
    assert out == "from stdin then\n"
    assert "step 40" in err
    assert "a text has 21 tokens; the model was trained on 20" in err


def test_compiled_programs_are_kept_for_the_next_process_unless_told_where(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        Engine, "generate", lambda self, prompts, **how: [Completion("", [], "end")]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = jax.config.jax_compilation_cache_dir
    try:
        for folder, expected in (
            ("/elsewhere", "/elsewhere"),
            (None, f"{tmp_path}/slmjax/compiled"),
        ):
            jax.config.update("jax_compilation_cache_dir", folder)
            assert main([f"--checkpoint={workdir.path}", "--prompt=a"]) == 0
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", told)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--checkpoint=/nowhere", "--prompt=a"], "no work directory '/nowhere'"),
        (["--prompt=a"], "--checkpoint"),
        (
            ["--checkpoint=", "--prompt=a"],
            "--checkpoint= is empty; give it a value or leave it out",
        ),
        (["--checkpoint={}", "--prompt=a", "--trust="], "--trust= is empty"),
        (["--checkpoint={}", "--prompt=a", "--prompts="], "--prompts= is empty"),
        (["--checkpoint={}", "--promt=a"], "'--prompt'"),
        (["--checkpoint={}"], "no prompt"),
        (
            ["--checkpoint={}", "--prompt=a", "--step=31"],
            "no checkpoint of step 31; there are 30, 40",
        ),
        (["--checkpoint={}", "--prompts=/nowhere"], "'/nowhere' cannot be read"),
        (["--checkpoint={}", "--prompt=a", "--max_tokens=many"], "--max_tokens"),
        (["--checkpoint={}", "--prompt=a", "--max_tokens=0"], "max_tokens is 0"),
        (["--checkpoint={}", "--prompt=a", "--max_tokens=1e9"], "--max_tokens"),
        (
            ["--checkpoint={}", "--prompt=a", "--max_tokens=100000000000"],
            "max_tokens is 100000000000",
        ),
        (
            ["--checkpoint={}", "--prompt=a", "--max_tokens=1000000000"],
            "73.0 GB, more than the 64.0 GB of this device",
        ),
        (["--checkpoint={}", "--prompt=a", "--top_p=1.5"], "top_p is 1.5"),
        (["--checkpoint={}", "--prompt=a", "--top_k=-1"], "top_k is -1"),
        (["--checkpoint={}", "--prompt=a", "--temperature=-0.1"], "temperature is -0.1"),
        (["--checkpoint={}", "--prompt=a", "--stop="], "stop string is empty"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_status_2(workdir, capsys, monkeypatch, argv, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr("slmjax.infer.engine.device_memory", lambda device: 64e9)
    assert main([option.format(workdir.path) for option in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("damage", ["params", "meta", "deep meta"])
def test_the_checkpoint_before_a_damaged_one_is_taken_and_said(workdir, tmp_path, capsys, damage):
    folder = shutil.copytree(workdir.path, tmp_path / "run")
    if damage == "params":
        for file in (folder / "checkpoints" / "40" / "params").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:20])
    else:
        (folder / "checkpoints" / "40" / "meta" / "metadata").write_text(
            "{" if damage == "meta" else '{"config": {"train": 3}}'
        )
    argv = [f"--checkpoint={folder}", "--prompt=first", "--max_tokens=8"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert (
        out.startswith("first")
        and "step 40: " in err
        and "passed over" in err
        and "step 30: 8 tokens" in err
    )
    assert main([*argv, "--step=40"]) == 2
    err = capsys.readouterr().err
    assert "step 40: " in err and err.count("\n") == 1
    shutil.rmtree(folder / "checkpoints" / "30")
    assert main(argv) == 2
    assert "none of the checkpoints" in capsys.readouterr().err


def test_prompts_of_stdin_and_of_files_are_utf8_with_or_without_a_mark(
    workdir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        Engine, "generate", lambda self, prompts, **how: [Completion("", [], "end")] * len(prompts)
    )
    for raw in (b"caf\xc3\xa9\r\nthe\n", b"\xef\xbb\xbfcaf\xc3\xa9\nthe"):
        (tmp_path / "prompts.txt").write_bytes(raw)
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "ascii", "surrogateescape")
        )
        for source in ([], [f"--prompts={tmp_path}/prompts.txt"]):
            assert main([f"--checkpoint={workdir.path}", *source]) == 0
            assert capsys.readouterr().out == "café\nthe\n"
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "ascii", "surrogateescape")
    )
    assert main([f"--checkpoint={workdir.path}"]) == 2
    assert capsys.readouterr().err == "slmjax: --prompts: stdin is not UTF-8 (byte 3).\n"


def test_code_that_a_checkpoint_names_runs_only_when_trusted(corpus, tmp_path, capsys, monkeypatch):
    marker = tmp_path / "imported"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = f"from tests.models.own import Mean as Mixer\nopen({str(marker)!r}, 'w').close()\n"
    (tmp_path / "stranger.py").write_text(text)
    run, name = tmp_path / "my run; it's [b]*?", "stranger:Mixer"
    assert (
        runs.train(corpus, run, model__pattern=name, train__steps=5) == 0
    )  # the user's own command line
    suggested = dict(
        line.strip().split(":  ", 1)
        for line in capsys.readouterr().out.splitlines()
        if ":  " in line
    )
    marker.unlink()
    monkeypatch.delitem(sys.modules, "stranger")
    argv = [f"--checkpoint={run}", "--prompt=a", "--max_tokens=3"]
    launcher = [
        f"--config={run}/config.json",
        f"--workdir={tmp_path}/other",
        "--config.stage=prepare",
    ]
    for command, words in (
        (main, argv),
        (main, [*argv, "--trust=stranger:Other"]),
        (launch.main, launcher),
        (bench.main, ["data", launcher[0]]),
    ):
        assert command(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert (
            f"names '{name}'" in err
            and f"--trust={name}" in err
            and str(tmp_path / "stranger.py") in err
        )
        assert not marker.exists() and "stranger" not in sys.modules
    words = shlex.split(suggested["generate"])
    assert (
        words[:3] == ["python", "-m", "slmjax.generate"]
        and f"--checkpoint={run}" in words
        and f"--trust={name}" in words
    )
    assert main([*words[3:], "--max_tokens=3"]) == 0
    assert marker.exists()
    again, compared = (
        list(part)
        for more, part in itertools.groupby(
            shlex.split(suggested["change and compare"]), "&&".__ne__
        )
        if more
    )
    assert f"--workdir={run}-2" in again and compared[2:] == [
        "slmjax.compare",
        str(run),
        f"{run}-2",
    ]
    assert launch.main([*launcher, f"--trust={name}"]) == 0


def test_help_and_a_missing_checkpoint_do_not_pay_for_jax():
    script = """
import sys
from slmjax.generate import main, parse_options, read_prompts
assert main(["--checkpoint=/nowhere", "--prompt=a"]) == 2
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
assert "jax" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--top_p" in done.stdout
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_of_a_removed_setting_is_refused_by_name_and_not_taken_for_damaged(
    workdir, tmp_path, capsys
):
    folder = shutil.copytree(workdir.path, tmp_path / "run")
    checkpoints = Checkpoints(str(folder))
    meta = checkpoints.meta(40)
    meta["config"]["model"]["norm_eps"] = 1e-5
    checkpoints.save(
        50,
        {"params": workdir.engine.params},
        {name: meta[name] for name in ("config", "tokenizer")},
    )
    checkpoints.wait()
    checkpoints.close()
    assert main([f"--checkpoint={folder}", "--prompt=first"]) == 2
    err = capsys.readouterr().err
    assert (
        "config.model.norm_eps is 1e-05; the field config.model.norm_eps was removed: it is now always 1e-06."
        in err
    )
