"""A teacher behind any OpenAI-compatible endpoint, through the official client."""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from slmjax.errors import UserError, nearest
from slmjax.synthesize.chat_completion import parse_answer
from slmjax.synthesize.plan import Item
from slmjax.synthesize.provider_errors import Complaint, error_words, retry_after, shortened
from slmjax.synthesize.teachers import Answer, SamplingTeacher, TeacherFault, TeacherRequest

OWN_URL = "https://api.openai.com/v1"
# Most bytes of an answer's body: 400,000 tokens at 10 bytes each (JSON escapes).
MAX_BYTES = 4_000_000
# The parameters of a request. An endpoint may call them otherwise (config.synthesize.names).
NAMES = ("max_tokens", "temperature", "top_p", "seed")
# Statuses with which an endpoint refuses every request, and what the user should check then.
REFUSED = {
    401: "OPENAI_API_KEY",
    402: "the account's credit",
    403: "OPENAI_API_KEY and what it may use",
    404: "config.synthesize.base_url, model and OPENAI_API_KEY",
}
# Client errors after which the same request may succeed: request timeout, conflict, too early.
PASSING = (408, 409, 425)
MODELS_SHOWN = 8  # most models that an error message lists


class OpenAITeacher(SamplingTeacher):
    """A model of an OpenAI-compatible endpoint; the key is $OPENAI_API_KEY.

    Args:
      model: as the endpoint names it.
      base_url: "" for OpenAI's own; "http://127.0.0.1:8000/v1" for a server such as vLLM.
      sampling: {"max_tokens", "temperature", "top_p"}.
      seed: of the run; each request gets a seed of its own from it.
      timeout: seconds for one answer, from the request to the last byte.
      licence: note on every document; "" for one that names the model.
      names: {parameter of NAMES: what the endpoint calls it, "" where it does not take it}; the
        other parameters keep their names.
    Raises: UserError where the package or the key is missing, or the address is not valid.
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
                "config.synthesize.teacher: openai needs the package openai; "
                'pip install "slmjax[openai]".'
            ) from error
        if not model:
            raise UserError(
                "config.synthesize.model is empty; name the model that the endpoint serves."
            )
        _check_address(base_url)
        key = _key_of_the_environment(base_url)
        super().__init__(sampling, seed)
        self.model = model
        self.licence = licence or f"output of {model}; the terms of its provider apply"
        self._timeout = timeout
        self._url = base_url or OWN_URL
        self._names = dict(names or {})
        # The client must not try again by itself: each attempt is reserved and journalled first.
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=self._url, max_retries=0, timeout=timeout
        )

    def parameters(self, item: Item) -> dict[str, Any]:
        parameters = super().parameters(item)
        for name, sent_name in self._names.items():
            if sent_name == "":
                parameters.pop(name, None)
        return parameters

    async def ask(self, request: TeacherRequest) -> Answer:
        body = await self._post(request)
        try:
            return parse_answer(body)
        except Complaint as error:
            raise self._fault(error.status, error.words) from error

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, request: TeacherRequest) -> bytes:
        """Return the body of the endpoint's answer. Raises: TeacherFault where there is none."""
        import httpx2  # the client's own transport; its errors pass through while a body is read
        import openai

        try:
            return await self._read_body(request)
        except openai.APIStatusError as error:
            # OpenAI reports missing credit as 429 (a rate limit), after which a run would wait.
            status = 402 if error.code == "insufficient_quota" else error.status_code
            words = error_words(error.body) or shortened(str(error.message))
            if status == 404:
                words += await self._served_models()
            wait = retry_after(error.response.headers.get("retry-after", ""))
            raise self._fault(status, words, wait) from error
        except (TimeoutError, openai.APITimeoutError) as error:
            raise TeacherFault(f"no answer in {self._timeout:g} s") from error
        except (openai.APIConnectionError, httpx2.RequestError) as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                # (0, 0) tokens: nothing was sent, so that nothing was paid for.
                raise TeacherFault(f"no connection to {self._url}", (0, 0)) from error
            raise TeacherFault("the connection was cut") from error

    async def _read_body(self, request: TeacherRequest) -> bytes:
        """Send a request and return the whole body of the response.

        Raises: TeacherFault for a body of more than MAX_BYTES, and the client's errors.
        """
        messages = [{"role": "user", "content": request.prompt}]
        parameters = {}
        for name, value in request.parameters.items():
            parameters[self._names.get(name, name)] = value
        post = self._client.chat.completions.with_streaming_response.create
        body = bytearray()
        # The client's own time limit is for each read; an endless answer would never exceed it.
        async with (
            asyncio.timeout(self._timeout),
            post(model=self.model, messages=messages, extra_body=parameters) as response,
        ):
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    raise TeacherFault(f"no end after {MAX_BYTES:,} bytes")
        return bytes(body)

    async def _served_models(self) -> str:
        """Return a sentence with the models that the endpoint serves; "" where it lists none."""
        import httpx2
        import openai

        try:
            page = await self._client.with_options(timeout=5.0).models.list()
            names = [str(model.id) for model in page.data]
        except (openai.OpenAIError, httpx2.RequestError, TypeError, ValueError, AttributeError):
            return ""
        if not names:
            return ""
        shown = ", ".join(names[:MODELS_SHOWN])
        more = ", ..." if len(names) > MODELS_SHOWN else ""
        return f" The endpoint serves {shown}{more}.{nearest(self.model, names)}"

    def _fault(self, status: int, words: str, wait: float = 0.0) -> TeacherFault:
        """Return the fault that an error of the endpoint means.

        Args:
          status: HTTP status; 0 where it is not known.
          words: what the endpoint says.
          wait: seconds that it asks to wait.
        """
        reason = f"HTTP {status}: {words}" if status else f"error: {words}"
        # (0, 0) tokens: the endpoint refused the request before the model wrote anything. After the
        # last kind of error the model may have begun to write, so that the tokens are not known.
        if status in REFUSED:
            ends = (
                f"config.synthesize: {self._url} refuses model '{self.model}' ({reason}); "
                f"check {REFUSED[status]}."
            )
            return TeacherFault(reason, (0, 0), again=False, ends=ends)
        if status == 429:
            return TeacherFault(reason, (0, 0), wait=wait, limit=True)
        if 400 <= status < 500 and status not in PASSING:
            return TeacherFault(reason, (0, 0), again=False)
        return TeacherFault(reason, wait=wait)


def _key_of_the_environment(base_url: str) -> str:
    """Return $OPENAI_API_KEY, or "" where a server with a `base_url` may need none.

    Raises: UserError where it is not ASCII, and where it is missing for OpenAI's own endpoint.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii():
        raise UserError("OPENAI_API_KEY holds characters that no key has; set it again.")
    if not key and not base_url:
        raise UserError(
            "OPENAI_API_KEY is not set in the environment; the key of the endpoint is read from "
            "there alone."
        )
    return key


def _check_address(base_url: str) -> None:
    """Raise UserError for a base_url that no client can use."""
    if not base_url:
        return
    setting = f"config.synthesize.base_url is '{base_url}'"
    scheme, separator, host_and_path = base_url.partition("://")
    if not separator:
        raise UserError(f"{setting}; it has no scheme. Did you mean 'http://{base_url}'?")
    has_blanks = any(map(str.isspace, host_and_path))
    if scheme not in ("http", "https") or not host_and_path.strip("/") or has_blanks:
        raise UserError(f"{setting}; expected an address such as http://127.0.0.1:8000/v1.")
    for ending in ("/chat/completions", "/completions"):
        if base_url.rstrip("/").endswith(ending):
            root = base_url.rstrip("/").removesuffix(ending)
            raise UserError(f"{setting}; the client adds {ending}. Did you mean '{root}'?")
