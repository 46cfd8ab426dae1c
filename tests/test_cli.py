"""What every command does with mistakes, faults of the machine, the user's own code, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

from slmjax import cli, compare, generate, launch, mixture
from slmjax.bench import __main__ as bench
from slmjax.errors import UserError, line_of_the_user
from tests import runs

COMMANDS = {
    "launch": (launch, "make_config", ["--config=x.py"]),
    "mixture": (mixture, "make_config", ["--config=x.py"]),
    "generate": (generate, "run", ["--checkpoint=x", "--prompt=a"]),
    "compare": (compare, "compare", ["a", "b"]),
    "bench": (bench, "_split", ["data"]),
}
ERRORS = [
    (UserError("the sentence."), "the sentence."),
    (PermissionError(13, "Permission denied", "notes.txt"), "'notes.txt' cannot be used: Permission denied."),
    (IsADirectoryError(21, "Is a directory", b"folder"), "'folder' cannot be used: Is a directory."),
    (FileExistsError(17, "File exists", "notes.txt"), "'notes.txt' cannot be written: File exists."),
    (OSError(28, "No space left on device"), "a file cannot be written: No space left on device."),
    (ValueError("INTERNAL: No space left on device [source]"), "cannot be written: No space left on device."),
    (MemoryError("all of it"), "there is not enough memory: all of it"),
]


def raising(error):
    """A function of the library (as its file name says) that raises an error."""
    place = os.path.join(os.path.dirname(cli.__file__), "made_up.py")
    names = {"error": error}
    exec(compile("def function(*_, **__):\n    raise error\n", place, "exec"), names)
    return names["function"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_same_net(name, capsys, monkeypatch):
    module, inside, words = COMMANDS[name]
    for error, sentence in ERRORS:
        monkeypatch.setattr(module, inside, raising(error))
        assert module.main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err == f"slmjax: {err.removeprefix('slmjax: ')}" and err.count("\n") == 1 and sentence in err
    monkeypatch.setattr(module, inside, raising(KeyboardInterrupt()))
    assert module.main(words) == 130 and capsys.readouterr() == ("", "")
    assert module.main([*words, os.fsdecode(b"--x=caf\xe9")]) == 2
    assert capsys.readouterr().err == "slmjax: the argument '--x=caf\\xe9' is not UTF-8.\n"


def test_a_fault_of_the_library_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.entry(raising(ZeroDivisionError("of ours")), [])


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    program = "from slmjax import cli\ncli.script(lambda: cli.entry(lambda words: [print('x' * 80) for _ in range(10**5)] and 0, []))"
    command = f'{sys.executable} -c "{program}" | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=runs.ROOT)
    assert done.stdout.splitlines() == ["x" * 80, str(128 + signal.SIGPIPE)] and done.stderr == ""


BUSY = """
import os, signal, sys, threading, time
from slmjax import cli

def command(words):
    threading.Thread(target=time.sleep, args=(60,)).start()  # as XLA's, which Python waits for at its end
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

def swallows(words):
    try:
        command(words)
    except KeyboardInterrupt:
        time.sleep(60)

class Lost:
    def __del__(self):
        command([])

def lost(words):
    Lost()
    time.sleep(60)

cli.UNWINDING = {}
cli.script(lambda: cli.entry({}, []))
"""


@pytest.mark.parametrize(("function", "unwinding"), [("command", 100), ("swallows", 0.2), ("lost", 100)])
def test_ctrl_c_ends_a_command_though_threads_work_on_or_the_exception_is_lost(function, unwinding):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BUSY.format(unwinding, function)], capture_output=True, text=True, check=False, cwd=runs.ROOT
    )
    assert done.returncode == 130 and done.stderr == "" and time.monotonic() - start < 30


def test_text_and_names_are_utf8_whatever_the_locale(tmp_path):
    folder = tmp_path / "café"
    folder.mkdir()
    (folder / "recipe.py").write_text("raise ValueError('trop tôt')", "utf-8")
    for settings in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**os.environ, **settings, "PYTHONPATH": str(runs.ROOT)}
        command = [sys.executable, "-m", "slmjax.launch", f"--config={folder}/recipe.py"]
        done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.decode("utf-8") == f"slmjax: --config: '{folder}/recipe.py', line 1: trop tôt.\n"


def test_a_suggested_command_means_the_same_in_a_shell():
    words = ["echo", "my run; echo hi", "it's [b]", "$HOME", "--prompt=a\nb"]
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {cli.shown(words)}"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == words


MIXER = """import flax.linen as nn


class Mixer(nn.Module):
    arch: object
    block: object

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        {}
"""
MIXERS = {
    "x = (": "', line 1: SyntaxError: '(' was never closed.",
    "import flax.linen as nn\nx = 1 / 0": "', line 2: ZeroDivisionError: division by zero.",
    "import sys": "has no attribute 'Mixer'",
    "Mixer = 3": "which is 3; expected a class of flax.linen.Module",
    MIXER.format("return jnp.sum(x), cache, shared"): "', line 10: NameError: name 'jnp' is not defined",
    MIXER.format("return x @ x, cache, shared"): "', line 10: TypeError: ",
    MIXER.format("return x[..., :3], cache, shared"): "returned y of shape",
    MIXER.format("return x"): "expected (y, cache, shared)",
}


@pytest.mark.parametrize("text", MIXERS)
def test_a_mixer_of_the_user_that_fails_is_named_with_its_line(text, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "broken_mixer", raising=False)
    (tmp_path / "broken_mixer.py").write_text(text)
    assert runs.train(corpus, tmp_path / "run", model__pattern="broken_mixer:Mixer") == 2
    err = capsys.readouterr().err
    assert err.startswith("slmjax: ") and err.count("\n") == 1 and MIXERS[text] in err
    assert "', line " not in MIXERS[text] or str(tmp_path / "broken_mixer.py") in err
    assert not (tmp_path / "run").exists()
    sys.modules.pop("broken_mixer", None)


def test_a_home_that_no_user_has_is_one_sentence(capsys):
    assert launch.main(["--config=~no-such-user/recipe.py"]) == 2
    assert "no user of this machine" in capsys.readouterr().err


def test_a_line_of_a_compiled_package_is_not_the_users():
    code = compile("1 / 0", "pyarrow/table.pxi", "exec")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(code)
    assert line_of_the_user(caught.value) != ("pyarrow/table.pxi", 1)
