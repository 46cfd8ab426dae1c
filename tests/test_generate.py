"""The command line of generation: what it prints, and one sentence for each mistake."""

import io
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from slmjax.checkpoint import Checkpoints
from slmjax.config import base, to_dict
from slmjax.data.tokenizer import train_bpe
from slmjax.generate import main, parse, read_prompts
from slmjax.infer.engine import Completion, Engine
from slmjax.models import lm
from slmjax.models.architecture import from_config


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory):  # with `corpus`, compiled programs are kept in the session's folder
    """A work directory with two checkpoints of a tiny model with constant weights."""
    config, folder = base(), tmp_path_factory.mktemp("run")
    config.update_from_flattened_dict({"model.width": 16, "model.heads": 2, "model.kv_heads": 1, "model.head_dim": 8, "model.ff_width": 16})
    config.model.layers, config.data.seq_len = 1, 20
    tokenizer = train_bpe(["a b c d e f"], 260)
    tokenizer.save(folder / "tokenizer.json")
    arch = from_config(config, 384)
    shapes = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    checkpoints = Checkpoints(str(folder))
    for step in (30, 40):
        checkpoints.save(step, params, {"step": jnp.int32(step)}, {"config": to_dict(config), "tokenizer": tokenizer.sha256})
    checkpoints.wait()
    checkpoints.close()
    return types.SimpleNamespace(path=str(folder), engine=Engine(arch, params, {}, tokenizer))


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\n")
    assert read_prompts(parse(["--checkpoint=x", f"--prompts={tmp_path}/prompts.txt"])) == ["first", "second"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufefffirst\n"))
    assert read_prompts(parse(["--checkpoint=x"])) == ["first"]


def test_prompts_of_the_command_line_and_of_a_file_are_completed_and_the_speed_goes_to_stderr(workdir, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("third one\n\n")
    argv = ["--step=30", "--prompt=first", "--prompt=", f"--prompts={tmp_path}/prompts.txt", "--max_tokens=8"]
    assert main([f"--checkpoint={workdir.path}", *argv]) == 0
    out, err = capsys.readouterr()
    expected = workdir.engine.generate(["first", "", "third one"], max_tokens=8, temperature=0.8)
    assert out == "".join(f"{prompt}{c.text}\n" for prompt, c in zip(["first", "", "third one"], expected))
    assert f"step 30: {sum(len(c.tokens) for c in expected)} tokens, " in err
    assert "warning" not in err


def test_every_option_reaches_the_engine_and_a_length_beyond_training_is_warned_of(workdir, capsys, monkeypatch):
    calls = []
    ten = [Completion(" then", [1] * 10, "stop")]
    monkeypatch.setattr(Engine, "generate", lambda self, prompts, **how: calls.append((prompts, how)) or ten)
    monkeypatch.setattr(sys, "stdin", io.StringIO("from stdin\n"))
    options = "--max_tokens=15 --temperature=0.5 --top_k=3 --top_p=0.25 --stop=x --stop=yz --seed=9"
    assert main([f"--checkpoint={workdir.path}", *options.split()]) == 0
    how = {"max_tokens": 15, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "stop": ["x", "yz"], "seed": 9}
    assert calls == [(["from stdin"], how)]
    out, err = capsys.readouterr()
    assert out == "from stdin then\n"
    assert "step 40" in err
    assert "a text has 21 tokens; the model was trained on 20" in err


def test_compiled_programs_are_kept_for_the_next_process_unless_told_where(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Engine, "generate", lambda self, prompts, **how: [Completion("", [], "end")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = jax.config.jax_compilation_cache_dir
    try:
        for folder, expected in (("/elsewhere", "/elsewhere"), (None, f"{tmp_path}/slmjax/compiled")):
            jax.config.update("jax_compilation_cache_dir", folder)
            assert main([f"--checkpoint={workdir.path}", "--prompt=a"]) == 0
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", told)


@pytest.mark.parametrize(("argv", "words"), [
    (["--checkpoint=/nowhere", "--prompt=a"], "no work directory '/nowhere'"),
    (["--prompt=a"], "--checkpoint"),
    (["--checkpoint={}", "--promt=a"], "'--prompt'"),
    (["--checkpoint={}"], "no prompt"),
    (["--checkpoint={}", "--prompt=a", "--step=31"], "no checkpoint of step 31; there are 30, 40"),
    (["--checkpoint={}", "--prompts=/nowhere"], "'/nowhere' cannot be read"),
    (["--checkpoint={}", "--prompt=a", "--max_tokens=many"], "--max_tokens"),
    (["--checkpoint={}", "--prompt=a", "--max_tokens=0"], "max_tokens is 0"),
    (["--checkpoint={}", "--prompt=a", "--top_p=1.5"], "top_p is 1.5"),
    (["--checkpoint={}", "--prompt=a", "--top_k=-1"], "top_k is -1"),
    (["--checkpoint={}", "--prompt=a", "--temperature=-0.1"], "temperature is -0.1"),
    (["--checkpoint={}", "--prompt=a", "--stop="], "stop string is empty"),
])  # fmt: skip
def test_a_mistake_gets_one_sentence_and_exit_status_2(workdir, capsys, monkeypatch, argv, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main([option.format(workdir.path) for option in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_help_and_a_missing_checkpoint_do_not_pay_for_jax():
    script = """
import sys
from slmjax.generate import main, parse, read_prompts
assert main(["--checkpoint=/nowhere", "--prompt=a"]) == 2
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--top_p" in done.stdout
    assert done.stderr.count("\n") == 1
