"""Teachers behind one small interface: the embedded program, any OpenAI-compatible endpoint, and a checkpoint of our own."""

import asyncio
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from slmjax.curate.synthesize import program
from slmjax.curate.synthesize.plan import Item, opening, prompt
from slmjax.errors import UserError

TEMPLATE_TOKENS = 64  # that a chat template puts around a message, at most: Llama 3.1's published one, with its date lines, has about 40
MAX_BYTES = 4_000_000
"""An answer that is longer is cut off: at 10 bytes a token (JSON escapes), 400,000 tokens."""
MAX_WAIT = 600.0  # longest Retry-After, in seconds, that is honoured as it stands


@dataclass(frozen=True)
class Request:
    """What a teacher is asked; `key` is plan.key of model, prompt and parameters."""

    key: str
    prompt: str
    parameters: dict[str, Any]
    item: Item


@dataclass(frozen=True)
class Answer:
    """A complete answer. finish: "stop" or "length"; tokens: (of the prompt, of the answer), None where the teacher does not say."""

    text: str
    finish: str
    tokens: tuple[int, int] | None


class Fault(Exception):
    """A request that came to nothing.

    tokens: (prompt, answer) that are counted all the same; None where only the teacher knows, so that the reservation stays.
    wait: seconds that the teacher asked for; again: whether asking again may help; limit: the teacher says "slower", not "no".
    """

    def __init__(self, reason: str, tokens: tuple[int, int] | None = None, *, wait: float = 0.0, again: bool = True, limit: bool = False):
        super().__init__(reason)
        self.reason, self.tokens, self.wait, self.again, self.limit = reason, tokens, wait, again, limit


class Teacher:
    """What every teacher has: name; model, a part of every key; licence note and date of what it writes (date "": when it was asked)."""

    name = model = licence = date = ""

    def prompt(self, item: Item) -> str:
        """The text that is sent for an item."""
        return prompt(item)

    def parameters(self, item: Item) -> dict[str, Any]:
        """Everything else that the answer depends on; "max_tokens" among it."""
        raise NotImplementedError

    async def ask(self, request: Request) -> Answer:
        """The answer. Raises: Fault; UserError where no request can succeed."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of connections and tasks."""


class Sampling(Teacher):
    """A teacher that draws its answers, each item's with a seed of its own."""

    def __init__(self, sampling: Mapping[str, Any], seed: int):
        self._sampling, self._seed = dict(sampling), seed

    def parameters(self, item: Item) -> dict[str, Any]:
        return {**self._sampling, "seed": (self._seed * 1_000_003 + item.number) % 2**31}


def reservation(request: Request) -> tuple[int, int]:
    """The most tokens that a request can cost, (prompt, answer): no tokenizer makes more tokens of a text than it has bytes.

    A teacher that says it used more is believed, and what it used more is the most by which a budget can be exceeded.
    """
    return len(request.prompt.encode()) + TEMPLATE_TOKENS, request.parameters["max_tokens"]


class Program(Teacher):
    """The embedded teacher; see program.py. Tokens are estimated at four bytes each."""

    name, model, licence, date = "program", program.MODEL, program.LICENCE, program.DATE

    def __init__(self, seed: int):
        self.seed = seed

    def parameters(self, item: Item) -> dict[str, Any]:
        # `aspect` and the passage say nothing to a program: what it writes depends on these.
        return {"seed": self.seed, "number": item.number, "format": item.format, "audience": item.audience, "max_tokens": 4096}

    async def ask(self, request: Request) -> Answer:
        text = program.write(request.item, self.seed)
        return Answer(text, "stop", (0, len(text.encode()) // 4))


class OpenAI(Sampling):
    """Any OpenAI-compatible endpoint, by the official client; the key comes from the environment, OPENAI_API_KEY.

    Args:
      base_url: "" is OpenAI's own; "http://127.0.0.1:8000/v1" a server such as vLLM.
      timeout: seconds for one answer, from asking to its last byte.
    Raises: UserError where the package or the key is missing.
    """

    name, date = "openai", ""

    def __init__(self, model: str, base_url: str, *, sampling: Mapping[str, Any], seed: int, timeout: float, licence: str = ""):
        try:
            import openai
        except ImportError as error:
            raise UserError('config.synthesize.teacher: openai needs the package openai; pip install "slmjax[openai]".') from error
        if not model:
            raise UserError("config.synthesize.model is empty; name the model that the endpoint serves.")
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key and not base_url:
            raise UserError("OPENAI_API_KEY is not set in the environment; the key of the endpoint is read from there alone.")
        self.model, self.licence = model, licence or f"output of {model}; the terms of its provider apply"
        super().__init__(sampling, seed)
        self._timeout, self._url = timeout, base_url or "https://api.openai.com/v1"
        # The client must not try again by itself: each try is journalled and reserved first.
        self._client = openai.AsyncOpenAI(api_key=key or "none", base_url=self._url, max_retries=0, timeout=timeout)

    async def ask(self, request: Request) -> Answer:
        import httpx2  # the client's own transport, whose errors it lets through while a body is read
        import openai

        messages = [{"role": "user", "content": request.prompt}]
        create = self._client.chat.completions.with_streaming_response.create
        body = bytearray()
        try:
            # The client's time limit is one for each read; an answer that never ends would never meet it.
            async with asyncio.timeout(self._timeout), create(model=self.model, messages=messages, **request.parameters) as response:
                async for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise Fault(f"no end after {MAX_BYTES:,} bytes")
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Fault(f"no answer in {self._timeout:g} s") from error
        except (openai.APIConnectionError, httpx2.RequestError) as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise Fault(f"no connection to {self._url}", (0, 0)) from error
            raise Fault("the connection was cut") from error
        return parse(bytes(body))

    async def close(self) -> None:
        await self._client.close()

    def _refused(self, error: Any) -> Exception:
        """What an HTTP status means for the request, the tokens and the run."""
        status, wait = error.status_code, retry_after(error.response.headers.get("retry-after", ""))
        told = str(error.message).strip().partition("\n")[0][:200]
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            return UserError(f"config.synthesize: {self._url} refuses model '{self.model}' (HTTP {status}: {told}); check OPENAI_API_KEY.")
        if status == 429:
            return Fault("HTTP 429", (0, 0), wait=wait, limit=True)
        if status in (400, 413, 422):
            return Fault(f"HTTP {status}: {told}", (0, 0), again=False)
        return Fault(f"HTTP {status}", wait=wait)


class Checkpoint(Sampling):
    """A model of our own: it continues each item's opening; requests that wait are answered in one batch.

    Args:
      workdir: of a training run.
      trust: names of code that the checkpoint may name, see config.check_trust.
    """

    name, date = "checkpoint", ""

    def __init__(self, workdir: str, *, sampling: Mapping[str, Any], seed: int, batch: int, licence: str = "", trust: Sequence[str] = ()):
        if not workdir:
            raise UserError("config.synthesize.teacher is checkpoint; name the run whose model writes: --init_from=WORKDIR.")
        from slmjax.compiling import use_compile_cache
        from slmjax.infer.engine import Engine
        from slmjax.infer.load import load_model

        use_compile_cache()
        loaded = load_model(workdir, trust=trust)
        self._engine = Engine(loaded.arch, loaded.params, loaded.buffers, loaded.tokenizer, max_batch=batch)
        self.model = f"{workdir} step {loaded.step}"
        self.licence = licence or f"output of {workdir}; the licences of its text apply"
        super().__init__(sampling, seed)
        self._batch = batch
        self._waiting: list[tuple[Request, asyncio.Future]] = []
        self._turns: asyncio.Task | None = None

    def prompt(self, item: Item) -> str:
        return opening(item)

    async def ask(self, request: Request) -> Answer:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await future

    async def close(self) -> None:
        if self._turns:
            self._turns.cancel()

    async def _take_turns(self) -> None:
        await asyncio.sleep(0.05)  # the others ask in this moment, too
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                answers = await asyncio.to_thread(self._generate, [request for request, _ in batch])
            except Exception as error:  # whoever waits must hear of it, whatever it is
                for _, future in batch:
                    future.set_exception(error)
                raise
            for (_, future), answer in zip(batch, answers):
                if not future.done():
                    future.set_result(answer)

    def _generate(self, requests: list[Request]) -> list[Answer]:
        out = self._engine.generate(
            [request.prompt for request in requests],
            max_tokens=self._sampling["max_tokens"],
            temperature=self._sampling["temperature"],
            top_p=self._sampling["top_p"],
            seed=[request.parameters["seed"] for request in requests],
        )
        return [
            Answer(request.prompt + found.text, "length" if found.finish == "length" else "stop",
                   (len(self._engine.encode(request.prompt)), len(found.tokens)))
            for request, found in zip(requests, out)
        ]  # fmt: skip


def parse(body: bytes) -> Answer:
    """The answer in the body of a chat completion.

    Raises: Fault for a body that is not one, and for an empty answer (which is paid for, as far as its usage says).
    """
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        text, finish = choice["message"]["content"] or "", choice.get("finish_reason") or "stop"
        text.encode()  # escapes in JSON can spell characters that no text file can hold
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Fault("broken JSON") from error
    usage = data.get("usage")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    known = len(counts) == 2 and all(type(count) is int and 0 <= count < 10**9 for count in counts)
    tokens = (counts[0], counts[1]) if known else None
    if not text.strip():
        raise Fault("empty answer", tokens)
    return Answer(text, "length" if finish == "length" else "stop", tokens)


def retry_after(value: str) -> float:
    """Seconds of a Retry-After header (a number or a date), 0 where there is none, at most MAX_WAIT."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else 0.0
