"""Talk with a trained model in the terminal, or with a program through a pipe.

python -m slmjax.chat --checkpoint=WORKDIR
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slmjax import cli
from slmjax.cli.terminal import interruptible, piped_lines, say, show, typed_lines
from slmjax.errors import UserError, nearest
from slmjax.infer.dialogue import NEW_TURNS, Dialogue, Exchange, trained_on_dialogues
from slmjax.readable import said_if_long
from slmjax.text.chat_template import chat_ids
from slmjax.text.conversations import SYSTEM
from slmjax.text.remote import existing_work_place
from slmjax.text.tokenizer import TURN_END, TURN_START

USAGE = "Talk with a trained model: python -m slmjax.chat --checkpoint=WORKDIR."
COMMANDS = {
    "/reset": "begin anew; the system turn stays",
    "/system TEXT": "set the system turn; without TEXT: drop it",
    "/retry": "answer the last question again, with the next seed",
    "/save FILE": "add the dialogue to FILE as a line of JSON",
    "/help": "list the commands",
    "/exit": "leave, as the end of the input does",
}
# A slash and letters: a path such as /usr/bin is no command.
_COMMAND = re.compile(r"(/[A-Za-z]+)(?:\s+(.*))?", re.DOTALL)


class Speed(NamedTuple):
    """How long an answer took, without compilation."""

    tokens: int
    first: float  # seconds to the first token
    seconds: float  # for all tokens, the first one included

    def in_words(self) -> str:
        """Return the time to the first token and the tokens in a second."""
        rate = self.tokens / max(self.seconds, 1e-9)
        return f"the first token after {self.first:.2f} s, {rate:.0f} tokens/s"


class ChatSession:
    """A dialogue on stdin and stdout with one model.

    Args:
      engine: an infer.engine.Engine.
      longest: tokens of a row in training.
      chatty: the model has learned to answer in turns; a base model's answers end at NEW_TURNS.
      options: of the command line.
    """

    def __init__(self, engine: Any, longest: int, *, chatty: bool, options: argparse.Namespace):
        self.engine = engine
        self.longest = longest
        self.chatty = chatty
        self.options = options
        self.dialogue = Dialogue(options.system)
        self.seed = options.seed  # of the next answer
        self.left_out = 0  # exchanges that did not fit into the last prompt
        self.speeds: list[Speed] = []
        self.compiling = _compile_seconds()  # of each compilation; it grows by itself

    def take(self, line: str) -> bool:
        """Answer a question or follow a command; returns False where the session ends.

        Raises: UserError for a command that does not exist or cannot be followed, or a question
          that is too long.
        """
        command = _COMMAND.fullmatch(line.rstrip())
        if not command:
            if line.strip():
                self.ask(line.strip())
            return True
        # Every command takes the rest of its line, so that file names may hold blanks.
        name, words = command[1], (command[2] or "").strip()
        if name == "/exit":
            return False
        follow = {
            "/reset": self.reset,
            "/system": self.set_system,
            "/retry": self.retry,
            "/save": self.save,
            "/help": self.help,
        }.get(name)
        if follow is None:
            names = [usage.split()[0] for usage in COMMANDS]
            known = f"{', '.join(names)}; put a blank before a text that begins so"
            hint = nearest(name, names)
            raise UserError(f"{name}: there is no such command ({known}).{hint}")
        follow(words)
        return True

    def ask(self, question: str) -> None:
        """Print the answer to a question, and keep both in the dialogue."""
        exchange = Exchange(question)
        self.dialogue.exchanges.append(exchange)
        try:
            # At most half of a row is kept free: the dialogue so far gets the other half, however
            # long answers may be.
            room = min(self.options.max_tokens, self.longest // 2)
            prompt = self.dialogue.prompt(self.engine.tokenizer, room, self.longest)
            self._say_left_out(prompt.left_out)
            exchange.answer = self._answer(prompt.ids)
        finally:
            # The question was refused, or a second Ctrl-C ended the answer.
            if exchange.answer is None:
                self.dialogue.exchanges.pop()

    def reset(self, words: str) -> None:
        """Forget the exchanges."""
        self.dialogue.exchanges.clear()
        self.left_out = 0
        say("the dialogue begins anew")

    def set_system(self, words: str) -> None:
        """Set the text of the system turn."""
        self.dialogue.system = words
        say("the system turn is set" if words else "there is no system turn now")

    def retry(self, words: str) -> None:
        """Answer the last question again."""
        if not self.dialogue.exchanges:
            raise UserError("/retry: no question was asked yet.")
        last = self.dialogue.exchanges.pop()
        try:
            self.ask(last.question)
        except UserError:
            # A longer system turn may leave no room; the old answer is still there then.
            self.dialogue.exchanges.append(last)
            raise

    def save(self, words: str) -> None:
        """Add the dialogue to a file, as a line of JSON."""
        if not words:
            raise UserError("/save needs a file: /save FILE.")
        messages = self.dialogue.messages()
        if all(message["role"] == SYSTEM for message in messages):
            raise UserError("/save: nothing was said yet.")
        # Appended, so that a file can collect dialogues to train on, and none is lost.
        line = json.dumps({"messages": messages}, ensure_ascii=False)
        try:
            with Path(words).expanduser().open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except (OSError, RuntimeError) as error:
            # pathlib raises RuntimeError for ~ and a name that no user has.
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"/save: '{words}' cannot be written: {reason.rstrip('.')}.") from None
        say(f"{len(messages)} turns were added to '{words}'")

    def help(self, words: str) -> None:
        """List the commands."""
        for usage, meaning in COMMANDS.items():
            say(f"{usage:13} {meaning}")
        say(f"{'Ctrl-C':13} stop an answer; at the prompt: leave")

    def summary(self) -> str:
        """Return a line on the speed of all answers; "" where there is none."""
        if not self.speeds:
            return ""
        answers = "1 answer"
        if len(self.speeds) > 1:
            answers = f"{len(self.speeds)} answers"
        together = Speed(
            tokens=sum(speed.tokens for speed in self.speeds),
            # The median, since the first answer is slower: the weights are read for the first time.
            first=statistics.median(speed.first for speed in self.speeds),
            seconds=sum(speed.seconds for speed in self.speeds),
        )
        compiled = f"{sum(self.compiling):.1f} s of compilation"
        return f"{answers}, {together.tokens} tokens: {together.in_words()}, and {compiled}"

    def _answer(self, ids: Sequence[int]) -> str:
        """Print the answer to a prompt while it comes; returns its text."""
        # Imported late, as jax takes seconds.
        from slmjax.infer.streaming import stream

        options, tokenizer = self.options, self.engine.tokenizer
        stop: Sequence[str] = ()
        stop_ids = tokenizer.ends
        # A base model goes on with the next question, in words or with the id that begins a turn.
        if not self.chatty:
            stop = NEW_TURNS
            stop_ids = [*stop_ids, tokenizer.special_id(TURN_START)]
        pieces = stream(
            self.engine,
            ids,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=stop,
            stop_ids=stop_ids,
            seed=self.seed,
        )
        # The next answer is another one, even to the same question.
        self.seed += 1
        # Without compilation, which would hide the speed of a short session.
        clock = _Clock(self.compiling)
        said, finish, count = "", "", 0
        with interruptible() as interrupts:
            # The first piece is one token; it may have to be compiled.
            with said_if_long("compiling", active=sys.stderr.isatty(), say=say):
                piece = next(pieces)
            first = clock.seconds()
            # Ctrl-C counts between two pieces: what is shown is also what the dialogue keeps.
            while piece is not None:
                count += len(piece.tokens)
                said += piece.text
                finish = piece.finish
                show(piece.text)
                if interrupts:
                    finish = finish or "stopped"
                    break
                piece = next(pieces, None)
            print(flush=True)
        self.speeds.append(Speed(count, first, clock.seconds()))
        self._say_end(finish, len(ids) + 1 + count)
        return said

    def _say_end(self, finish: str, size: int) -> None:
        """Print how an answer ended, where the model did not end it.

        Args:
          size: tokens of the dialogue with the answer.
        """
        if finish == "stopped":
            say("stopped")
        if finish == "length":
            say(f"the answer was cut at --max_tokens={self.options.max_tokens}")
        if size > self.longest:
            reason = f"the model was trained on {self.longest} and knows no positions beyond"
            say(f"warning: the dialogue has {size} tokens; {reason}")
        if self.options.verbose:
            speed = self.speeds[-1]
            say(f"{speed.tokens} tokens ({finish}): {speed.in_words()}")

    def _say_left_out(self, left_out: int) -> None:
        """Print that more of the dialogue than before does not fit, once for each exchange."""
        if left_out > self.left_out:
            what = "the oldest question and its answer are"
            if left_out > 1:
                what = f"the oldest {left_out} questions and their answers are"
            trained = f"a dialogue of {self.longest} tokens, which is as long as in training"
            say(f"{what} left out: with an answer, more would not fit into {trained}")
        self.left_out = left_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see cli.entry."""
    return cli.entry(lambda words: chat(chat_parser().parse_args(words)), argv)


def chat(options: argparse.Namespace) -> None:
    """Answer each line of stdin on stdout; all else goes to stderr."""
    workdir = existing_work_place(options.checkpoint, "--checkpoint")
    if options.max_tokens < 1:
        raise UserError(f"--max_tokens is {options.max_tokens}; it must be at least 1.")
    # jax takes seconds to import: --help and the errors above do not need it.
    from slmjax.infer import sampling

    # Wrong values are refused before a model is loaded.
    sampling.check_sampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    from slmjax.infer.engine import Engine
    from slmjax.infer.load import load_model
    from slmjax.parallel.compiling import use_compile_cache

    # The second session with a model then compiles nothing.
    use_compile_cache()
    with said_if_long("reading the model", active=sys.stderr.isatty(), say=say):
        model = load_model(workdir, options.step, options.trust)
    _check_tokenizer(model.tokenizer, workdir)
    engine = Engine(model.arch, model.params, model.buffers, model.tokenizer, tuned=False)
    chatty = trained_on_dialogues(model.config)
    session = ChatSession(engine, model.config.data.seq_len, chatty=chatty, options=options)
    step = model.step
    del model  # the engine has weights of its own
    typed = sys.stdin is not None and sys.stdin.isatty()
    if typed:
        say(f"step {step} of '{workdir}'; /help lists the commands, Ctrl-C stops an answer")
    if not chatty:
        fault = "a base model, trained on text and not on dialogues"
        say(f"'{workdir}' is {fault}: its answers continue text")
    try:
        _converse(session, typed)
    finally:
        if line := session.summary():
            say(line)


def chat_parser() -> cli.Parser:
    """Return the options of the command line."""
    parser = cli.Parser(may_be_empty=("--system",), prog="python -m slmjax.chat", description=USAGE)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="WORKDIR", help="work directory of a training run")
    add("--step", type=int, help="checkpoint of this step (default: the newest)")
    add("--system", default="", metavar="TEXT", help="system turn, before the first question")
    default = "(default: %(default)s)"
    add("--max_tokens", type=int, default=256, help=f"longest answer in tokens {default}")
    add("--temperature", type=float, default=0.8, help=f"0 takes the likeliest token {default}")
    top_k_help = "draw among the k likeliest tokens; 0: all"
    add("--top_k", type=int, default=0, help=f"{top_k_help} {default}")
    top_p_help = "draw among the likeliest tokens that hold this share; 1: all"
    add("--top_p", type=float, default=1.0, help=f"{top_p_help} {default}")
    seed_help = "of the first answer's draws; each further answer has the next seed"
    add("--seed", type=int, default=0, help=f"{seed_help} {default}")
    add("--verbose", action="store_true", help="print the speed of each answer to stderr")
    trust_help = "a mixer that the checkpoint names and that may be imported; repeatable"
    add("--trust", metavar="MODULE:CLASS", action="append", default=[], help=trust_help)
    return parser


def _check_tokenizer(tokenizer: Any, workdir: str) -> None:
    """Raise UserError where the tokenizer cannot mark turns, with the command that can be used."""
    try:
        chat_ids(tokenizer)
    except UserError as error:
        marks = f"'{TURN_START}' and '{TURN_END}'"
        fault = f"the tokenizer of '{workdir}' has no special tokens {marks}"
        words = ["python", "-m", "slmjax.generate", f"--checkpoint={workdir}", "--prompt=TEXT"]
        advice = f"complete texts with it instead: {cli.shell_command(words)}"
        raise UserError(f"{fault}, which mark the turns of a dialogue; {advice}") from error


def _converse(session: ChatSession, typed: bool) -> None:
    """Take the lines of stdin until they end.

    A person may try again after a mistake; for a program the first one is the end.
    """
    lines = typed_lines() if typed else piped_lines()
    for line in lines:
        try:
            if not session.take(line):
                return
        except UserError as error:
            if not typed:
                raise
            say(str(error))


class _Clock:
    """Seconds since it was made, without those of compilation."""

    def __init__(self, compiling: list[float]):
        self._compiling = compiling
        self._compiled = sum(compiling)
        self._began = time.perf_counter()

    def seconds(self) -> float:
        compiled = sum(self._compiling) - self._compiled
        # Times of nested traces overlap: their sum may exceed the time that has passed.
        return max(time.perf_counter() - self._began - compiled, 0.0)


def _compile_seconds() -> list[float]:
    """Return a list to which the seconds of each compilation are added from now on."""
    import jax

    compiling: list[float] = []

    # JAX tells of compilation by events; there is no other way to know its time.
    def note_compilation(event: str, seconds: float, **_: Any) -> None:
        if "/compile/" in event:
            compiling.append(seconds)

    listen: Callable = jax.monitoring.register_event_duration_secs_listener
    listen(note_compilation)
    return compiling


if __name__ == "__main__":
    cli.script(main)
