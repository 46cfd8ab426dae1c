"""Teachers behind one small interface: the embedded program, any OpenAI-compatible endpoint, and a checkpoint of our own."""

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from slmjax.errors import UserError, nearest
from slmjax.synthesize import program_teacher as program
from slmjax.synthesize.plan import Item, opening, prompt

TEMPLATE_TOKENS = 64  # that a chat template puts around a message, at most: Llama 3.1's published one, with its date lines, has about 40
MAX_BYTES = 4_000_000
"""An answer that is longer is cut off: at 10 bytes a token (JSON escapes), 400,000 tokens."""
# Finish reasons of a whole answer and of a cut one (OpenAI, TGI, Anthropic, Gemini, Mistral).
WHOLE = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
CUT = ("length", "max_tokens", "model_length")
# Parts of the names that providers give to errors, by the status that they stand for.
CODES = {
    401: ("api_key", "authentication", "unauthorized"),
    402: ("insufficient_quota", "insufficient_credits", "payment"),
    403: ("permission",),
    404: ("model_not_found", "not_found_error"),
    429: ("rate_limit", "too_many_requests"),
    400: (
        "invalid",
        "unsupported",
        "bad_request",
        "badrequest",
        "context_length",
        "content_policy",
    ),
}
REFUSED = {
    401: "OPENAI_API_KEY",
    402: "the account's credit",
    403: "OPENAI_API_KEY and what it may use",
}
NAMES = ("max_tokens", "temperature", "top_p", "seed")
"""Parameters that are sent, of which config.synthesize.names says what the endpoint calls them."""
MAX_WAIT = 600.0  # longest Retry-After, in seconds, that is honoured as it stands


@dataclass(frozen=True)
class TeacherRequest:
    """What a teacher is asked; `key` is plan.key of model, prompt and parameters."""

    key: str
    prompt: str
    parameters: dict[str, Any]
    item: Item


@dataclass(frozen=True)
class Answer:
    """An answer. finish: "stop" where it is whole, "length" where it was cut, else why it ended.

    tokens: (of the prompt, of the answer), None where the teacher does not say.
    """

    text: str
    finish: str
    tokens: tuple[int, int] | None


class TeacherFault(Exception):
    """A request that came to nothing.

    tokens: (prompt, answer) that are counted all the same; None where only the teacher knows, so that the reservation stays.
    wait: seconds that the teacher asked for; again: whether asking again may help; limit: the teacher says "slower", not "no".
    ends: the sentence with which the run ends, where no request can succeed; "" where others may.
    """

    def __init__(
        self,
        reason: str,
        tokens: tuple[int, int] | None = None,
        *,
        wait: float = 0.0,
        again: bool = True,
        limit: bool = False,
        ends: str = "",
    ):
        super().__init__(reason)
        self.reason, self.tokens, self.ends = reason, tokens, ends
        self.wait, self.again, self.limit = wait, again, limit


class Complaint(Exception):
    """An error of the provider: the HTTP status that it stands for (0: not known) and its words."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status, self.said = status, said


class Teacher:
    """What every teacher has: name; model, a part of every key; licence note and date of what it writes (date "": when it was asked)."""

    name = model = licence = date = ""

    def prompt(self, item: Item) -> str:
        """The text that is sent for an item."""
        return prompt(item)

    def parameters(self, item: Item) -> dict[str, Any]:
        """Everything else that the answer depends on; "max_tokens" among it."""
        raise NotImplementedError

    async def ask(self, request: TeacherRequest) -> Answer:
        """The answer. Raises: TeacherFault."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of connections and tasks."""


class TeacherSampling(Teacher):
    """A teacher that draws its answers, each item's with a seed of its own."""

    def __init__(self, sampling: Mapping[str, Any], seed: int):
        self._sampling, self._seed = dict(sampling), seed

    def parameters(self, item: Item) -> dict[str, Any]:
        return {**self._sampling, "seed": (self._seed * 1_000_003 + item.number) % 2**31}


def reservation(request: TeacherRequest) -> tuple[int, int]:
    """The most tokens that a request can cost, (prompt, answer): no tokenizer makes more tokens of a text than it has bytes.

    A teacher that says it used more is believed, and what it used more is the most by which a budget can be exceeded.
    """
    return len(request.prompt.encode()) + TEMPLATE_TOKENS, request.parameters["max_tokens"]


class ProgramTeacher(Teacher):
    """The embedded teacher; see program.py. Tokens are estimated at four bytes each."""

    name, model, licence, date = "program", program.MODEL, program.LICENCE, program.DATE

    def __init__(self, seed: int):
        self.seed = seed

    def parameters(self, item: Item) -> dict[str, Any]:
        # `aspect` and the passage say nothing to a program: what it writes depends on these.
        return {
            "seed": self.seed,
            "number": item.number,
            "format": item.format,
            "audience": item.audience,
            "max_tokens": 4096,
        }

    async def ask(self, request: TeacherRequest) -> Answer:
        text = program.write_document(request.item, self.seed)
        return Answer(text, "stop", (0, len(text.encode()) // 4))


class OpenAI(TeacherSampling):
    """Any OpenAI-compatible endpoint, by the official client; the key comes from the environment, OPENAI_API_KEY.

    Args:
      base_url: "" is OpenAI's own; "http://127.0.0.1:8000/v1" a server such as vLLM.
      timeout: seconds for one answer, from asking to its last byte.
    Raises: UserError where the package or the key is missing.
    """

    name, date = "openai", ""

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        sampling: Mapping[str, Any],
        seed: int,
        timeout: float,
        licence: str = "",
        names: Mapping[str, str] | None = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                'config.synthesize.teacher: openai needs the package openai; pip install "slmjax[openai]".'
            ) from error
        if not model:
            raise UserError(
                "config.synthesize.model is empty; name the model that the endpoint serves."
            )
        _check_address(base_url)
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key.isascii():
            raise UserError("OPENAI_API_KEY holds characters that no key has; set it again.")
        if not key and not base_url:
            raise UserError(
                "OPENAI_API_KEY is not set in the environment; the key of the endpoint is read from there alone."
            )
        self.model, self.licence = (
            model,
            licence or f"output of {model}; the terms of its provider apply",
        )
        super().__init__(sampling, seed)
        self._timeout, self._url = timeout, base_url or "https://api.openai.com/v1"
        self._names = dict(names or {})
        # The client must not try again by itself: each try is journalled and reserved first.
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=self._url, max_retries=0, timeout=timeout
        )

    def parameters(self, item: Item) -> dict[str, Any]:
        given = super().parameters(item)
        return {name: value for name, value in given.items() if self._names.get(name) != ""}

    async def ask(self, request: TeacherRequest) -> Answer:
        import httpx2  # the client's own transport, whose errors it lets through while a body is read
        import openai

        messages = [{"role": "user", "content": request.prompt}]
        create = self._client.chat.completions.with_streaming_response.create
        named = {self._names.get(name, name): value for name, value in request.parameters.items()}
        body = bytearray()
        try:
            # The client's time limit is one for each read; an answer that never ends would never meet it.
            async with (
                asyncio.timeout(self._timeout),
                create(model=self.model, messages=messages, extra_body=named) as response,
            ):
                async for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise TeacherFault(f"no end after {MAX_BYTES:,} bytes")
        except openai.APIStatusError as error:
            code = 402 if error.code == "insufficient_quota" else error.status_code
            said = error_words(error.body) or shortened(str(error.message))
            if code == 404:
                said += await self._served()
            wait = retry_after(error.response.headers.get("retry-after", ""))
            raise self._refused(code, said, wait) from error
        except (TimeoutError, openai.APITimeoutError) as error:
            raise TeacherFault(f"no answer in {self._timeout:g} s") from error
        except (openai.APIConnectionError, httpx2.RequestError) as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise TeacherFault(f"no connection to {self._url}", (0, 0)) from error
            raise TeacherFault("the connection was cut") from error
        try:
            return parse_answer(bytes(body))
        except Complaint as error:
            raise self._refused(error.status, error.said) from error

    async def close(self) -> None:
        await self._client.close()

    async def _served(self) -> str:
        """The names of the models that the endpoint serves, the nearest first; "" where it does not say."""
        import httpx2
        import openai

        try:
            found = await self._client.with_options(timeout=5.0).models.list()
            names = [str(model.id) for model in found.data]
        except (openai.OpenAIError, httpx2.RequestError, TypeError, ValueError, AttributeError):
            return ""
        near = nearest(self.model, names)
        return (
            f" The endpoint serves {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}.{near}"
            if names
            else ""
        )

    def _refused(self, status: int, said: str, wait: float = 0.0) -> TeacherFault:
        """What an error means for the request, the tokens and the run."""
        told = f"HTTP {status}: {said}" if status else f"error: {said}"
        if status in REFUSED or status == 404:
            check = REFUSED.get(status, "config.synthesize.base_url, model and OPENAI_API_KEY")
            sentence = f"{self._url} refuses model '{self.model}' ({told}); check {check}."
            return TeacherFault(told, (0, 0), again=False, ends=f"config.synthesize: {sentence}")
        if status == 429:
            return TeacherFault(told, (0, 0), wait=wait, limit=True)
        if 400 <= status < 500 and status not in (408, 409, 425):
            return TeacherFault(told, (0, 0), again=False)
        return TeacherFault(told, wait=wait)


def _check_address(base_url: str) -> None:
    """Raises: UserError for a base_url that no client can use."""
    field, example = f"config.synthesize.base_url is '{base_url}'", "http://127.0.0.1:8000/v1"
    if not base_url:
        return
    scheme, found, place = base_url.partition("://")
    if not found:
        raise UserError(f"{field}; it has no scheme. Did you mean 'http://{base_url}'?")
    if scheme not in ("http", "https") or not place.strip("/") or any(map(str.isspace, place)):
        raise UserError(f"{field}; expected an address such as {example}.")
    for ending in ("/chat/completions", "/completions"):
        if base_url.rstrip("/").endswith(ending):
            root = base_url.rstrip("/").removesuffix(ending)
            raise UserError(f"{field}; the client adds {ending}. Did you mean '{root}'?")


class Checkpoint(TeacherSampling):
    """A model of our own: it continues each item's opening; requests that wait are answered in one batch.

    Args:
      workdir: of a training run.
      trust: names of code that the checkpoint may name, see config.check_trust.
    """

    name, date = "checkpoint", ""

    def __init__(
        self,
        workdir: str,
        *,
        sampling: Mapping[str, Any],
        seed: int,
        batch: int,
        licence: str = "",
        trust: Sequence[str] = (),
    ):
        if not workdir:
            raise UserError(
                "config.synthesize.teacher is checkpoint; name the run whose model writes: --init_from=WORKDIR."
            )
        from slmjax.infer.engine import Engine
        from slmjax.infer.load import load_model
        from slmjax.parallel.compiling import use_compile_cache

        use_compile_cache()
        loaded = load_model(workdir, trust=trust)
        self._engine = Engine(
            loaded.arch, loaded.params, loaded.buffers, loaded.tokenizer, max_batch=batch
        )
        self.model = f"{workdir} step {loaded.step}"
        self.licence = licence or f"output of {workdir}; the licences of its text apply"
        super().__init__(sampling, seed)
        self._batch = batch
        self._waiting: list[tuple[TeacherRequest, asyncio.Future]] = []
        self._turns: asyncio.Task | None = None

    def prompt(self, item: Item) -> str:
        return opening(item)

    async def ask(self, request: TeacherRequest) -> Answer:
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

    def _generate(self, requests: list[TeacherRequest]) -> list[Answer]:
        out = self._engine.generate(
            [request.prompt for request in requests],
            max_tokens=self._sampling["max_tokens"],
            temperature=self._sampling["temperature"],
            top_p=self._sampling["top_p"],
            seed=[request.parameters["seed"] for request in requests],
        )
        return [
            Answer(
                request.prompt + found.text,
                "length" if found.finish == "length" else "stop",
                (len(self._engine.encode(request.prompt)), len(found.tokens)),
            )
            for request, found in zip(requests, out)
        ]


def parse_answer(body: bytes) -> Answer:
    """The answer in the body of a chat completion.

    Raises: Complaint for an error of the provider inside it; TeacherFault for a body that is no completion,
      and for one without text (which is paid for, as far as its usage says).
    """
    try:
        data = _of_stream(body) if body.lstrip().startswith(b"data:") else json.loads(body)
        raise_complaint(data)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = "" if body.strip() else ": the body is empty"
        if (
            body.lstrip()[:1] not in b"{["
        ):  # a page of a proxy, or of a path that is none of the API's
            said = f": {shortened(body[:10_000].decode(errors='replace'))}"
        raise TeacherFault(f"broken JSON{said}") from error
    try:
        choice = data["choices"][0]
        raise_complaint(choice)
        message, finish = choice["message"], finish_of(choice.get("finish_reason"))
        text = _text(message.get("content"))
    except (LookupError, TypeError, AttributeError) as error:
        raise TeacherFault(
            f"no chat completion: {shortened(body[:10_000].decode(errors='replace'))}"
        ) from error
    usage = data.get("usage")
    counts = (
        [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if isinstance(usage, dict)
        else []
    )
    known = len(counts) == 2 and all(type(count) is int and 0 <= count < 10**9 for count in counts)
    tokens = (counts[0], counts[1]) if known else None
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise TeacherFault("half a surrogate pair in the text, which no file can hold", tokens)
    if not text.strip():
        reason = _why_empty(message, finish)
        raise TeacherFault(reason, tokens, again=reason == "empty answer")
    return Answer(text, finish, tokens)


def _of_stream(body: bytes) -> dict[str, Any]:
    """A whole completion of one that came in pieces, as some gateways send it unasked.

    Raises: ValueError for a piece that is broken, and where the stream was cut.
    """
    lines = [
        line.removeprefix(b"data:").strip()
        for line in body.splitlines()
        if line.startswith(b"data:")
    ]
    text, finish, usage = "", None, None
    for piece in (json.loads(line) for line in lines if line != b"[DONE]"):
        raise_complaint(piece)
        usage = piece.get("usage") or usage
        for choice in piece.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            finish = choice.get("finish_reason") or finish
    if not finish and b"[DONE]" not in lines:
        raise ValueError("the stream was cut")
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


def finish_of(value: Any) -> str:
    """ "stop" for a whole answer, "length" for one that was cut, else the provider's own word."""
    word = str(value or "stop").lower()
    return "stop" if word in WHOLE else "length" if word in CUT else word


def _text(content: Any) -> str:
    """The text of a message's content, which may come in parts.

    Raises: TypeError for what is neither; TeacherFault for parts of another type than text and thoughts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in [content] if isinstance(content, dict) else content:
        kind = part.get("type", "text")
        if kind in ("text", "output_text"):
            texts.append(part["text"])
        elif kind not in ("thinking", "reasoning"):
            raise TeacherFault(
                f"the answer holds a part of type '{kind}', which is no text", again=False
            )
    return "".join(texts)


def _why_empty(message: Mapping[str, Any], finish: str) -> str:
    if message.get("refusal"):
        return f"refusal: {shortened(str(message['refusal']))}"
    if message.get("reasoning_content") or message.get("reasoning"):
        used_up = " (the thoughts used up max_tokens)" if finish == "length" else ""
        return f"only thoughts, no answer{used_up}"
    return "empty answer" if finish == "stop" else f"empty answer, finish_reason {finish}"


def raise_complaint(data: Any) -> None:
    """Raises: Complaint where the provider says, in one of the usual forms, what went wrong."""
    if isinstance(data, list):
        data = next((entry for entry in data if isinstance(entry, dict)), {})
    if not isinstance(data, dict):
        return
    error = data.get("error")
    if not error and (data.get("object") == "error" or not {"choices", "message"} & {*data}):
        error = data
    said = error_words(error)
    if not said:
        return
    codes = [data.get("code"), data.get("status")]
    if isinstance(error, dict):
        codes = [error.get("code"), error.get("status"), error.get("type"), *codes]
    raise Complaint(next((code for code in map(status_of, codes) if code), 0), said)


def status_of(code: Any) -> int:
    """The HTTP status that an error's code stands for; 0 where it stands for none."""
    if isinstance(code, int | float) or str(code).isdecimal():
        return int(code) if 400 <= int(code) < 600 else 0
    name = str(code).lower()
    for status, parts in CODES.items():
        if any(part in name for part in parts):
            return status
    return 0


def error_words(error: Any) -> str:
    """What the provider says in an error, in one of the usual forms; "" where it says nothing."""
    if isinstance(error, list):
        error = error[0] if error else ""
    if not isinstance(error, dict):
        return shortened(error) if isinstance(error, str) else ""
    for name in ("message", "detail", "error", "msg", "title", "error_description"):
        if said := error_words(error.get(name)):
            return said
    return ""


def shortened(text: str) -> str:
    """The beginning of a text without markup, in one line."""
    text = re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:300]


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
