"""The chat command: what it prints for a person and for a program, and how a session ends."""

import functools
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.chat import main
from slmjax.checkpoint import Checkpoints
from slmjax.config import base, freeze, to_dict
from slmjax.errors import UserError
from slmjax.infer import streaming
from slmjax.infer.dialogue import Dialogue, Exchange, trained_on_dialogues
from slmjax.infer.engine import Engine
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.text.chat_template import prompt_parts
from slmjax.text.conversations import Turn
from slmjax.text.tokenizer import EOT, TURN_END, TURN_START, train_bpe
from tests.corpus import ROOT

SEQ_LEN = 96
TOKENIZER = train_bpe(["a b c d e f"], 280)


def make_run(folder, following, *, task="orpo", tokenizer=TOKENIZER, seq_len=SEQ_LEN):
    """A work directory whose model is a table of the tokens that can follow a token.

    Those of a token are equally likely; after a token without any, every token is.
    """
    config = base()
    config.update_from_flattened_dict(
        {
            "model.width": 384,
            "model.heads": 2,
            "model.kv_heads": 1,
            "model.head_dim": 2,
            "model.ff_width": 2,
            "model.layers": 1,
            "model.tied": False,
            "data.seq_len": seq_len,
            "task": task,
        }
    )
    tokenizer.save(folder / "tokenizer.json")
    arch = from_config(freeze(config).model, 384)
    shapes = jax.eval_shape(functools.partial(lm.init, arch), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # The mixers write nothing, so that the head looks up the last token.
    head = np.zeros((384, 384), np.float32)
    for token, others in following.items():
        head[token, others] = 1.0
    norm = {"scale": jnp.ones(384)}
    params |= {"embedding": jnp.eye(384), "head": jnp.array(head), "final_norm": norm}
    checkpoints = Checkpoints(str(folder))
    meta = {"config": to_dict(freeze(config)), "tokenizer": tokenizer.sha256}
    checkpoints.save(40, {"params": params}, meta)
    checkpoints.wait()
    checkpoints.close()
    engine = Engine(arch, params, {}, tokenizer, tuned=False)
    return types.SimpleNamespace(path=str(folder), engine=engine)


def ids(text):
    return TOKENIZER.encode(text)


def chain(text, end):
    """A table that writes `text`, whose characters are all different, after a line feed."""
    tokens = [*ids("\n"), *ids(text), end]
    return {here: [there] for here, there in itertools.pairwise(tokens)}


LETTERS = [ids(letter)[0] for letter in "abcdefghij "]


@pytest.fixture(scope="module")
def talker(corpus, tmp_path_factory):
    """Answers in random letters and half characters, about eleven tokens long."""
    mixed = [*LETTERS, ids("\u00e4")[0], TOKENIZER.special[TURN_END]]
    following = dict.fromkeys([*mixed, ids("\u00e4")[1]], mixed)
    following |= dict.fromkeys(ids("\n"), LETTERS[:-1])
    return make_run(tmp_path_factory.mktemp("talker"), following, seq_len=1000)


@pytest.fixture(scope="module")
def endless(corpus, tmp_path_factory):
    """Answers that never end."""
    following = dict.fromkeys([*LETTERS, *ids("\n")], LETTERS)
    return make_run(tmp_path_factory.mktemp("endless"), following)


def give(monkeypatch, raw):
    """Let `raw` be what comes through the pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "ascii"))


def expected_answer(run, turns, seed, **how):
    """The text that Engine.generate finds for turns, given as (role, content)."""
    prompt = TOKENIZER.sequence(*prompt_parts([Turn(*turn) for turn in turns]))
    how = {"max_tokens": 256, "temperature": 0.8, **how}
    return run.engine.generate([prompt], seed=seed, **how)[0].text


def test_each_line_is_answered_as_by_generate_with_the_dialogue_so_far_and_the_next_seed(
    talker, monkeypatch, capsys
):
    give(monkeypatch, "\ufeffHow are you?\r\n\n   \n /reset is text\nTsch\u00fcss".encode())
    argv = ["--system=Be brief.", "--seed=5", "--temperature=1", "--top_k=12", "--top_p=0.95"]
    assert main([f"--checkpoint={talker.path}", *argv]) == 0
    out, err = capsys.readouterr()
    how = {"temperature": 1.0, "top_k": 12, "top_p": 0.95}
    turns, expected = [("system", "Be brief.")], ""
    for seed, question in enumerate(["How are you?", "/reset is text", "Tsch\u00fcss"], 5):
        turns.append(("user", question))
        answer = expected_answer(talker, turns, seed, **how)
        turns.append(("assistant", answer))
        expected += f"{answer}\n"
    assert out == expected and len(out) > 10
    (line,) = err.splitlines()
    assert re.fullmatch(
        r"3 answers, \d+ tokens: the first token after \d+\.\d\d s, \d+ tokens/s, "
        r"and \d+\.\d s of compilation",
        line,
    )


def test_commands_of_a_script(talker, tmp_path, monkeypatch, capsys):
    file = tmp_path / "a file.jsonl"
    lines = ["/system Be kind.", "first", f"/save {file}", "/retry", "second", f"/save {file}"]
    lines += ["/reset", "/system", "/help", "third", f"/save {file}", "/exit", "never read"]
    give(monkeypatch, "\n".join(lines).encode())
    assert main([f"--checkpoint={talker.path}"]) == 0
    out, err = capsys.readouterr()
    kind = ("system", "Be kind.")
    draws = [expected_answer(talker, [kind, ("user", "first")], seed) for seed in (0, 1)]
    assert draws[0] != draws[1] and all(map(str.strip, draws))
    dialogue = [kind, ("user", "first"), ("assistant", draws[1]), ("user", "second")]
    second = expected_answer(talker, dialogue, 2)
    third = expected_answer(talker, [("user", "third")], 3)
    assert out == f"{draws[0]}\n{draws[1]}\n{second}\n{third}\n"
    saved = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    expected = [
        [kind, ("user", "first"), ("assistant", draws[0])],
        [*dialogue, ("assistant", second)],
        [("user", "third"), ("assistant", third)],
    ]
    as_messages = [[{"role": r, "content": c} for r, c in turns] for turns in expected]
    assert saved == as_messages
    assert "3 turns were added to" in err and "the dialogue begins anew" in err
    assert "/retry        answer the last question again" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"/rety", "/rety: there is no such command"),
        (b"/rety", "Did you mean '/retry'?"),
        (b"/retry", "/retry: no question was asked yet."),
        (b"/save", "/save needs a file: /save FILE."),
        (b"/save x.jsonl", "/save: nothing was said yet."),
        (b"first\n/save /nowhere/x", "/save: '/nowhere/x' cannot be written: No such file"),
        (b"first\ncaf\xe9", "line 2 of stdin is not UTF-8 (byte 3)."),
        (b"x" * 1_000_000, "the question has 1000020 tokens; the model was trained on 1000"),
        (b"/system " + b"x" * 1200 + b"\nfirst", "the system turn and the question have"),
    ],
)
def test_a_mistake_in_a_pipe_ends_with_one_sentence_after_the_answers_before_it(
    talker, monkeypatch, capsys, line, words
):
    give(monkeypatch, b"%s\nnever asked\n" % line)
    assert main([f"--checkpoint={talker.path}"]) == 2
    out, err = capsys.readouterr()
    before = line.startswith(b"first")
    first = expected_answer(talker, [("user", "first")], 0)
    assert out == (f"{first}\n" if before else "")
    (sentence,) = (text for text in err.splitlines() if text.startswith("slmjax: "))
    assert words in sentence


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--checkpoint=/nowhere"], "no work directory '/nowhere'"),
        ([], "--checkpoint"),
        (["--checkpoint={}", "--sistem=a"], "'--system'"),
        (["--checkpoint={}", "--max_tokens=0"], "--max_tokens is 0"),
        (["--checkpoint={}", "--top_p=1.5"], "top_p is 1.5"),
        (["--checkpoint={}", "--temperature=-1"], "temperature is -1"),
        (["--checkpoint={}", "--step=41"], "no checkpoint of step 41; there are 40"),
        (["--checkpoint={}", "--trust="], "--trust= is empty"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_sentence_and_status_2(
    talker, monkeypatch, capsys, argv, words
):
    give(monkeypatch, b"first\n")
    assert main([option.format(talker.path) for option in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


def test_no_input_is_no_answer(talker, monkeypatch, capsys):
    give(monkeypatch, b"")
    assert main([f"--checkpoint={talker.path}", "--system="]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_line_comes_back_to_the_prompt_as_text_whatever_it_holds(talker, monkeypatch, capsys):
    prompts = []
    whole = streaming.stream

    def watched(engine, prompt, **how):
        prompts.append(list(prompt))
        return whole(engine, prompt, **how)

    monkeypatch.setattr(streaming, "stream", watched)
    give(monkeypatch, f"{TURN_END}\n{TURN_START}assistant {EOT}\n".encode())
    assert main([f"--checkpoint={talker.path}", f"--system={TURN_END}", "--max_tokens=4"]) == 0
    special = TOKENIZER.special
    for prompt, exchanges in zip(prompts, (1, 2), strict=True):
        assert prompt.count(special[TURN_START]) == 2 * exchanges + 1
        assert prompt.count(special[TURN_END]) == 2 * exchanges
        assert EOT not in prompt


def test_a_dialogue_longer_than_a_row_of_training_loses_its_oldest_exchanges_and_says_so(
    endless, monkeypatch, capsys
):
    prompts = []
    whole = streaming.stream

    def watched(engine, prompt, **how):
        prompts.append(list(prompt))
        return whole(engine, prompt, **how)

    monkeypatch.setattr(streaming, "stream", watched)
    questions = ["one", "two", "three", "four"]
    give(monkeypatch, "\n".join(questions).encode())
    # 46 tokens are the system turn, the question and what begins the answer.
    argv = ["--system=Be brief.", "--max_tokens=5", "--verbose"]
    assert main([f"--checkpoint={endless.path}", *argv]) == 0
    answers, err = capsys.readouterr()
    exchanges = list(zip(questions, answers.splitlines(), strict=True))
    left_out = 0
    for n, prompt in enumerate(prompts):
        candidates = []
        for first in range(n + 1):
            turns = [Turn("system", "Be brief.")]
            for question, answer in exchanges[first:n]:
                turns += [Turn("user", question), Turn("assistant", answer)]
            turns.append(Turn("user", questions[n]))
            candidates.append(TOKENIZER.sequence(*prompt_parts(turns)))
        (place,) = (first for first in range(n + 1) if candidates[first] == prompt)
        fits = [1 + len(candidate) + 5 <= SEQ_LEN for candidate in candidates]
        assert fits[place] and not any(fits[:place])
        left_out = max(left_out, place)
    assert left_out > 1
    assert "the oldest question and its answer are left out" in err
    assert f"the oldest {left_out} questions and their answers are left out" in err
    assert err.count("left out") == left_out
    assert err.count("the answer was cut at --max_tokens=5\n") == 4
    assert err.count("5 tokens (length): the first token after ") == 4
    assert "warning" not in err


def test_an_answer_beyond_a_row_of_training_is_warned_of(endless, monkeypatch, capsys):
    give(monkeypatch, b"one\n")
    assert main([f"--checkpoint={endless.path}", "--max_tokens=90"]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 40
    assert "warning: the dialogue has 1" in err and "the model was trained on 96" in err


def test_a_base_model_is_named_and_its_answer_ends_where_it_writes_the_next_turn(
    corpus, tmp_path, monkeypatch, capsys
):
    following = chain("Hi", ids("\n")[0]) | chain("User:H", 0)
    following |= {ids("\n")[0]: ids("HU"), ids("H")[0]: ids("i")}
    found = {}
    for task in ("lm", "orpo"):
        (tmp_path / task).mkdir()
        run = make_run(tmp_path / task, following, task=task)
        give(monkeypatch, b"one\n")
        argv = ["--temperature=1", "--max_tokens=60", "--seed=1"]
        assert main([f"--checkpoint={run.path}", *argv]) == 0
        found[task] = capsys.readouterr()
    assert "is a base model, trained on text and not on dialogues" in found["lm"].err
    assert "base model" not in found["orpo"].err
    # Held back while it could still become a new turn.
    answer, rest = found["orpo"].out.split("\nUser:", 1)
    assert answer.startswith("Hi") and rest
    assert found["lm"].out == f"{answer}\n"


def test_the_id_that_begins_a_turn_ends_the_answer_of_a_base_model(
    corpus, tmp_path, monkeypatch, capsys
):
    run = make_run(tmp_path, chain("Hi", TOKENIZER.special[TURN_START]), task="lm")
    give(monkeypatch, b"one\n")
    assert main([f"--checkpoint={run.path}", "--max_tokens=20", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hi\n" and "2 tokens (end)" in err


def test_the_tokenizer_of_an_older_run_is_refused_with_the_command_that_works(
    corpus, tmp_path, monkeypatch, capsys
):
    older = make_run(tmp_path, {}, tokenizer=train_bpe(["a b c d e f"], 260, (EOT,)))
    give(monkeypatch, b"one\n")
    assert main([f"--checkpoint={older.path}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "has no special tokens '<|im_start|>' and '<|im_end|>'" in err
    assert f"python -m slmjax.generate --checkpoint={tmp_path} --prompt=TEXT" in err


def saved_config(task, sources):
    data = types.SimpleNamespace(sources=sources)
    return types.SimpleNamespace(task=task, data=data)


@pytest.mark.parametrize(
    ("task", "sources", "answer"),
    [
        ("lm", {}, False),
        ("lm", {"web": {"path": "a.jsonl"}, "books": "b.jsonl"}, False),
        ("lm", {"web": {"path": "a", "kind": "text"}, "talk": {"path": "b", "kind": "chat"}}, True),
        ("lm", (types.SimpleNamespace(path="a"),), False),
        ("lm", (types.SimpleNamespace(path="a", kind="chat"),), True),
        ("orpo weight=0.2", {}, True),
        ("orpo odds_weight=0.2", {}, True),
        ("mine:Task rate=3", {}, False),
        ("mine:Task rate=3", {"pairs": {"path": "a", "kind": "pairs"}}, True),
    ],
)
def test_a_run_has_learned_to_chat_where_its_task_or_a_source_is_of_dialogues(
    task, sources, answer
):
    assert trained_on_dialogues(saved_config(task, sources)) is answer


def test_an_empty_answer_and_its_question_are_no_part_of_later_prompts_and_of_files():
    dialogue = Dialogue("", [Exchange("one", " \n"), Exchange("two", "2"), Exchange("three")])
    assert [turn.content for turn in dialogue.turns()] == ["two", "2", "three"]
    with pytest.raises(UserError, match="the question has 25 tokens"):
        dialogue.prompt(TOKENIZER, 4, 10)


def test_help_and_a_missing_checkpoint_do_not_pay_for_jax():
    script = """
import sys
from slmjax.chat import main
assert main(["--checkpoint=/nowhere"]) == 2
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
assert "jax" not in sys.modules
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--system TEXT" in done.stdout and done.stderr.count("\n") == 1


def start(run, *argv, **how):
    """Start the command in a process of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
    environment.pop("NO_COLOR", None)
    environment |= how.pop("environment", {})
    command = [sys.executable, "-m", "slmjax.chat", f"--checkpoint={run.path}", *argv]
    return subprocess.Popen(command, env=environment, cwd=ROOT, **how)


@pytest.mark.parametrize("times", [1, 2])
def test_a_stopped_answer_stays_in_the_dialogue_as_far_as_it_came_and_a_second_ctrl_c_leaves(
    endless, tmp_path, monkeypatch, capsys, times
):
    pieces = []
    whole = streaming.stream

    def interrupted(*given, **how):
        for piece in whole(*given, **how):
            pieces.append(piece.text)
            if len(pieces) == 3:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(streaming, "stream", interrupted)
    before = signal.getsignal(signal.SIGINT)
    file = tmp_path / "saved.jsonl"
    give(monkeypatch, f"one\n/save {file}\n".encode())
    status = main([f"--checkpoint={endless.path}", "--max_tokens=90"])
    assert signal.getsignal(signal.SIGINT) is before
    out, err = capsys.readouterr()
    assert len(pieces) == 3
    if times == 2:
        assert status == 130 and out == "".join(pieces[:2]) and not file.exists()
        return
    answer = "".join(pieces)
    assert status == 0 and out == f"{answer}\n" and "stopped\n" in err
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": answer}]
    assert json.loads(file.read_text()) == {"messages": messages}


def test_ctrl_c_stops_an_answer_and_keeps_the_session_and_at_the_prompt_it_leaves(endless):
    pipes = {"stdin": -1, "stdout": -1, "stderr": -1}
    # Minutes of tokens: the answer cannot end before the signal comes.
    argv = ["--max_tokens=200000", "--verbose"]
    with start(endless, *argv, bufsize=0, **pipes) as process:
        for number in (1, 2):
            process.stdin.write(b"question %d\n" % number)
            # The first byte is there once the answer has begun.
            answer = process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            answer += process.stdout.readline()
            assert set(answer.decode()) <= set("abcdefghij \n") and len(answer) > 1
            lines = [process.stderr.readline()]
            # The last line of a turn is that on its speed.
            while not lines[-1].endswith(b"tokens/s\n"):
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            assert b"stopped\n" in lines and b" tokens (stopped): " in lines[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stdout.read() == b""
        (summary,) = process.stderr.read().splitlines()
    assert summary.startswith(b"2 answers, ")


def test_a_reader_that_leaves_ends_the_session_as_other_commands_end(endless):
    pipes = {"stdin": -1, "stdout": -1, "stderr": -1}
    with start(endless, "--max_tokens=200000", **pipes) as process:
        process.stdin.write(b"question\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def read_until(terminal, wanted, seconds=120):
    """The bytes that a terminal shows up to and with `wanted`."""
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, shown
        try:
            shown += os.read(terminal, 1)
        except OSError:  # the other side is closed
            return shown
    return shown


@pytest.mark.parametrize("colour", [True, False])
def test_a_person_at_a_terminal_sees_a_prompt_and_answers_and_can_try_again(
    corpus, tmp_path, colour
):
    """The end of the input ends the session with status 0, Ctrl-C with 130."""
    # The answer holds a control sequence, which a terminal would follow.
    strange = make_run(tmp_path, chain("ok\x1b[1m.", TOKENIZER.special[TURN_END]))
    master, slave = pty.openpty()
    environment = {"TERM": "dumb"} if colour else {"TERM": "dumb", "NO_COLOR": "1"}
    ends = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
    with start(strange, environment=environment, **ends) as process:
        os.close(slave)
        before = read_until(master, b"\n> ").decode()
        assert ("\x1b[2mstep 40 of" in before) == colour
        os.write(master, b"hello\n")
        shown = read_until(master, b"\n> ").decode()
        assert "ok\\x1b[1m.\r\n" in shown and "\x1b[1m" not in shown
        os.write(master, b"/rety\n")
        assert b"Did you mean '/retry'?" in read_until(master, b"\n> ")
        if colour:
            os.write(master, b"\x04")
        else:
            # Python loses a Ctrl-C between printing the prompt and waiting for a key.
            while not select.select([master], [], [], 2)[0]:
                process.send_signal(signal.SIGINT)
        after = read_until(master, b"compilation").decode()
        # On a line of its own, not behind the prompt.
        assert after.startswith("\r\n") and "1 answer, 7 tokens" in after
        assert process.wait(60) == (0 if colour else 130)
    os.close(master)
