"""What every command does with mistakes, faults of the machine, the user's own code, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from slmjax import cli, compare, generate, launch, mixture, readable
from slmjax.bench import __main__ as bench
from slmjax.errors import UserError, line_of_the_user
from tests import runs

COMMANDS = {
    "launch": (launch, "make_config", ["--config=x.py"]),
    "mixture": (mixture, "make_config", ["--config=x.py"]),
    "generate": (generate, "generate_texts", ["--checkpoint=x", "--prompt=a"]),
    "compare": (compare, "compare", ["a", "b"]),
    "bench": (bench, "_split_off_fields", ["data"]),
}
ERRORS = [
    (UserError("the sentence."), "the sentence."),
    (
        PermissionError(13, "Permission denied", "notes.txt"),
        "'notes.txt' cannot be used: Permission denied.",
    ),
    (
        IsADirectoryError(21, "Is a directory", b"folder"),
        "'folder' cannot be used: Is a directory.",
    ),
    (
        FileExistsError(17, "File exists", "notes.txt"),
        "'notes.txt' cannot be written: File exists.",
    ),
    (OSError(28, "No space left on device"), "a file cannot be written: No space left on device."),
    (
        ValueError("INTERNAL: No space left on device [source]"),
        "cannot be written: No space left on device.",
    ),
    (
        ValueError(
            "OUT_OF_RANGE: Failed to write 2 bytes to file 8: File too large [os_error_code='27']"
        ),
        "written: File too large.",
    ),
    (
        ValueError("UNKNOWN: Error writing 'a': Disk quota exceeded [os_error_code='122']"),
        "cannot be written: Disk quota exceeded.",
    ),
    (
        ValueError("PERMISSION_DENIED: Failed to open [os_error_code='13']"),
        "the work directory cannot be used: Permission denied.",
    ),
    (
        RuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 30 bytes."),
        "there is not enough memory: INTERNAL",
    ),
    (MemoryError("all of it"), "there is not enough memory: all of it"),
]


def raising(error, what="raise error"):
    """A function of the library (as its file name says) that raises an error."""
    place = os.path.join(os.path.dirname(cli.__file__), "made_up.py")
    names = {"error": error, "np": np}
    exec(compile(f"def function(*_, **__):\n    {what}\n", place, "exec"), names)
    return names["function"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_same_net(name, capsys, monkeypatch):
    module, inside, words = COMMANDS[name]
    for error, sentence in ERRORS:
        monkeypatch.setattr(module, inside, raising(error))
        assert module.main(words) == 2
        out, err = capsys.readouterr()
        assert (
            out == ""
            and err == f"slmjax: {err.removeprefix('slmjax: ')}"
            and err.count("\n") == 1
            and sentence in err
        )
    monkeypatch.setattr(module, inside, raising(KeyboardInterrupt()))
    assert module.main(words) == 130 and capsys.readouterr() == ("", "")
    assert module.main([*words, os.fsdecode(b"--x=caf\xe9")]) == 2
    assert capsys.readouterr().err == "slmjax: the argument '--x=caf\\xe9' is not UTF-8.\n"


def test_a_sentence_is_one_printable_line_of_bounded_length_whatever_it_quotes(capsys):
    assert cli.entry(raising(UserError("field 'a\nb\x1b[2J\0\ud800é' is unknown.")), []) == 2
    assert capsys.readouterr().err == "slmjax: field 'a\\nb\\x1b[2J\\x00\\ud800é' is unknown.\n"
    assert cli.entry(raising(UserError(f"file 'a' has '{'x' * 10**6}', not 1.")), []) == 2
    err = capsys.readouterr().err
    assert (
        len(err) < 2000
        and err.startswith("slmjax: file 'a' has 'xx")
        and err.endswith("xx', not 1.\n")
    )


def test_a_fault_of_the_library_keeps_its_traceback():
    with pytest.raises(
        ValueError, match="non-negative"
    ):  # NumPy's compiled code names a file that is not there
        cli.entry(raising(-1, "np.random.default_rng(error)"), [])
    with pytest.raises(ZeroDivisionError):
        cli.entry(raising(ZeroDivisionError("of ours")), [])


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    program = "from slmjax import cli\ncli.script(lambda: cli.entry(lambda words: [print('x' * 80) for _ in range(10**5)] and 0, []))"
    command = f'{sys.executable} -c "{program}" | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=runs.ROOT
    )
    assert done.stdout.splitlines() == ["x" * 80, str(128 + signal.SIGPIPE)] and done.stderr == ""


def test_closed_streams_are_no_error():
    program = (
        "from slmjax import cli\ncli.script(lambda: cli.entry(lambda words: print('x' * 80), []))"
    )
    command = f'{sys.executable} -c "{program}" >&-; echo $?; {sys.executable} -c "{program}" >&- 2>&-; echo $?'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=runs.ROOT
    )
    assert done.stdout.split() == ["0", "0"] and done.stderr == ""


def test_a_line_about_long_work_that_nobody_reads_is_not_missed(monkeypatch, capsys):
    def gone(text):
        raise BrokenPipeError

    monkeypatch.setattr(readable, "SILENCE", 0.0)
    with readable.said_if_long("working", say=gone):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


BUSY = """
import os, signal, sys, threading, time
from slmjax import cli
from slmjax.cli import running

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

running.UNWINDING = {}
cli.script(lambda: cli.entry({}, []))
"""


@pytest.mark.parametrize(
    ("function", "unwinding"), [("command", 100), ("swallows", 0.2), ("lost", 100)]
)
def test_ctrl_c_ends_a_command_though_threads_work_on_or_the_exception_is_lost(function, unwinding):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BUSY.format(unwinding, function)],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
    )
    assert done.returncode == 130 and done.stderr == "" and time.monotonic() - start < 30


def test_text_and_names_are_utf8_whatever_the_locale(tmp_path):
    folder = tmp_path / "café"
    folder.mkdir()
    (folder / "recipe.py").write_text("raise ValueError('trop tôt')", "utf-8")
    for settings in (
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        environment = {**os.environ, **settings, "PYTHONPATH": str(runs.ROOT)}
        command = [sys.executable, "-m", "slmjax.launch", f"--config={folder}/recipe.py"]
        done = subprocess.run(
            command, env=environment, capture_output=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 2
        assert (
            done.stderr.decode("utf-8")
            == f"slmjax: --config: '{folder}/recipe.py', line 1: trop tôt.\n"
        )


@pytest.mark.parametrize("option", ["-E", "-I"])  # with each, Python ignores PYTHONUTF8
def test_text_is_utf8_where_python_ignores_its_variables(option):
    code = (
        f"import sys; sys.path.insert(0, {str(runs.ROOT)!r})\n"
        "from slmjax.cli.running import script\n"
        "script(lambda: print('caf\\xe9'))"
    )
    command = [sys.executable, option, "-X", "utf8=0", "-c", code]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "café\n".encode())


def test_a_suggested_command_means_the_same_in_a_shell():
    words = ["echo", "my run; echo hi", "it's [b]", "$HOME", "--prompt=a\nb"]
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {cli.shell_command(words)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\0")[:-1] == words


MIXER = """import flax.linen as nn
import numpy as np

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
    "Mixer = 3": "which is 3; expected a subclass of slmjax.models.layers.TokenMixer",
    MIXER.format(
        "return jnp.sum(x), cache, shared"
    ): "', line 10: NameError: name 'jnp' is not defined",
    MIXER.format("return x @ x, cache, shared"): "', line 10: TypeError: ",
    MIXER.format("return x[..., :3], cache, shared"): "returned y of shape",
    MIXER.replace("    arch: object\n", "").format(
        "return x, cache, shared"
    ): "expected a subclass of slmjax.models.layers.TokenMixer",
    MIXER.replace(", *, ctx, cache=None", "").format(
        "return x, cache, shared"
    ): "unexpected keyword argument 'ctx'); expected __call__(self,",
    MIXER.format(
        "return x > 0, cache, shared"
    ): "returned y of type bool; expected floating-point numbers",
    MIXER.format(
        "self.param('i', lambda key: np.zeros(3, int)); return x, cache, shared"
    ): "['i'] is of type int",
    MIXER.format("import sys; sys.exit(3)"): "', line 10: it ends the program (exit 3).",
    "import sys\nsys.exit('done')": "', line 2: it ends the program (exit done).",
    "import sys\nsys.exit('two\\nlines')": "', line 2: it ends the program (exit two\\nlines).",
    MIXER.format("return x"): "expected (y, cache, shared)",
}


@pytest.mark.parametrize("text", MIXERS)
def test_a_mixer_of_the_user_that_fails_is_named_with_its_line(
    text, corpus, tmp_path, capsys, monkeypatch
):
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
