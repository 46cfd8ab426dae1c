"""Generation with a calculator: where the model writes `<<48/2=`, the result is written for it."""

import dataclasses
import re
from collections.abc import Sequence

from slmjax.evals.number_answers import number_text
from slmjax.evals.word_problems import evaluate, parse_step
from slmjax.infer.engine import Completion, Engine
from slmjax.infer.stops import cut

EQUALS = "="
# Calculator mark that is open, up to its equals sign.
_OPEN_MARK = re.compile(r"<<([^<>=\n]{1,100})=\Z")
# Results beyond this are no sums of a word problem.
_LARGEST = 10**15
# A seed for each round of a row, so that it does not draw the same numbers again.
_ROUND = 1_000_003


@dataclasses.dataclass
class _Row:
    """A prompt and its answer so far."""

    prompt: list[int]
    seed: int
    ids: list[int] = dataclasses.field(default_factory=list)  # of the answer
    text: bytes = b""  # those of the ids; without a stop string that ended it
    finish: str = ""  # "" while it is running


def calculated(expression: str) -> str | None:
    """Return the result of "3*(4+1)" as GSM8K writes it, or None where it is no such expression.

    A result of more than four decimals is rounded to two.
    """
    try:
        step = parse_step(f"{expression}=0")
        value = evaluate(step.tree, step.operands)
    except (ValueError, ZeroDivisionError, RecursionError):  # the last for brackets in brackets
        return None
    if abs(value) > _LARGEST:
        return None
    is_short = (value * 10_000).denominator == 1
    return number_text(value, places=4 if is_short else 2)


def generate_with_calculator(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
    seeds: Sequence[int],
) -> list[Completion]:
    """Return completions in which each `<<expression=` is followed by its result and `>>`.

    All rows decode up to their next equals sign. Those that stand behind an open mark get the
    result; all of them go on from their text in the next round. A round reads the prompts and the
    answers so far anew, so an answer with n equals signs costs n prefills.
    See `Engine.generate` for the arguments; a row does not depend on the others.
    Source: Cobbe et al. 2021, appendix C.
    """
    rows = [_Row(list(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    number = 0  # of the round
    while running := [row for row in rows if not row.finish]:
        completions = engine.generate(
            [[*row.prompt, *row.ids] for row in running],
            max_tokens=max_tokens,
            temperature=temperature,
            stop=[*stop, EQUALS],
            seed=[row.seed + number * _ROUND for row in running],
        )
        for row, completion in zip(running, completions, strict=True):
            _extend(row, completion, engine, stop)
            if not row.finish and len(row.ids) >= max_tokens:
                row.finish = "length"
        number += 1
    answers = []
    for row in rows:
        # A round may have gone beyond the last token.
        ids = row.ids[:max_tokens]
        text = row.text[: len(_bytes(ids, engine))]
        answers.append(Completion(text.decode("utf-8", "replace"), ids, row.finish))
    return answers


def _extend(row: _Row, completion: Completion, engine: Engine, stop: Sequence[str]) -> None:
    """Add what a round has drawn to a row's answer, and the result of its calculation."""
    drawn = _bytes(completion.tokens, engine)
    kept = cut(drawn, [*stop, EQUALS])
    up_to_sign = kept + EQUALS.encode()
    if completion.finish != "stop" or not drawn.startswith(up_to_sign):
        row.ids += completion.tokens
        row.text += kept
        row.finish = completion.finish
        return
    # The last token may go on behind the equals sign.
    is_whole = drawn == up_to_sign
    encode = engine.tokenizer.encode
    row.ids += completion.tokens if is_whole else encode(up_to_sign.decode("utf-8", "replace"))
    mark = _OPEN_MARK.search(_bytes(row.ids, engine).decode("utf-8", "replace"))
    result = calculated(mark[1]) if mark else None
    if result is not None:
        row.ids += encode(f"{result}>>")
    row.text = _bytes(row.ids, engine)


def _bytes(ids: Sequence[int], engine: Engine) -> bytes:
    return b"".join([engine.token_bytes[token] for token in ids])
