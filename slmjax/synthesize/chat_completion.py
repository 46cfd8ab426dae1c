"""Parses the body of a chat completion, in the variants that OpenAI-compatible endpoints send."""

import json
from collections.abc import Mapping
from typing import Any

from slmjax.synthesize.provider_errors import raise_complaint, shortened
from slmjax.synthesize.teachers import Answer, TeacherFault

# Finish reasons of a whole answer and of a cut one (OpenAI, TGI, Anthropic, Gemini, Mistral).
WHOLE = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
CUT = ("length", "max_tokens", "model_length")
MOST_TOKENS = 10**9  # a larger count is an endpoint's mistake, not a usage
SHOWN_BYTES = 10_000  # of a body that is not a completion, from which its words are taken


def parse_answer(body: bytes) -> Answer:
    """Return the answer in the body of a chat completion.

    Raises:
      Complaint: the provider reports an error inside the body.
      TeacherFault: the body is not a completion, or it has no text. The second kind is paid for,
        as far as its usage says.
    """
    data = _parse_body(body)
    try:
        choice = data["choices"][0]
        raise_complaint(choice)
        message = choice["message"]
        finish = finish_of(choice.get("finish_reason"))
        text = _text(message.get("content"))
    except (LookupError, TypeError, AttributeError) as error:
        raise TeacherFault(f"no chat completion: {_shown(body)}") from error
    # What follows rejects the answer, which is paid for all the same.
    tokens = _used_tokens(data.get("usage"))
    # JSON can escape half of a surrogate pair, which UTF-8 cannot write.
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise TeacherFault("half a surrogate pair in the text, which no file can hold", tokens)
    if not text.strip():
        reason = _why_empty(message, finish)
        # Without a reason for it, an empty answer is an accident; with one it would come again.
        raise TeacherFault(reason, tokens, again=reason == "empty answer")
    return Answer(text, finish, tokens)


def finish_of(value: Any) -> str:
    """Return "stop" for a whole answer, "length" for a cut one, else the provider's own word."""
    word = str(value or "stop").lower()
    if word in WHOLE:
        return "stop"
    return "length" if word in CUT else word


def _parse_body(body: bytes) -> Any:
    """Return the parsed JSON of a body. Raises: Complaint, or TeacherFault for broken JSON."""
    content = body.lstrip()
    try:
        data = _join_stream(body) if content.startswith(b"data:") else json.loads(body)
        raise_complaint(data)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if not content:
            details = ": the body is empty"
        elif content[:1] in b"{[":
            details = ""
        else:  # the page of a proxy, or of an address outside the API
            details = f": {_shown(body)}"
        raise TeacherFault(f"broken JSON{details}") from error
    return data


def _join_stream(body: bytes) -> dict[str, Any]:
    """Return a completion that came in pieces (server-sent events) as one that came whole.

    Some gateways stream although nobody asked for it.
    Raises: ValueError for a broken piece and for a stream that was cut.
    """
    text, finish, usage, done = "", None, None, False
    for line in body.splitlines():
        if not line.startswith(b"data:"):
            continue
        event = line.removeprefix(b"data:").strip()
        if event == b"[DONE]":
            done = True
            continue
        piece = json.loads(event)
        raise_complaint(piece)
        usage = piece.get("usage") or usage
        for choice in piece.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            finish = choice.get("finish_reason") or finish
    if not finish and not done:
        raise ValueError("the stream was cut")
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


def _text(content: Any) -> str:
    """Return the text of a message's content, which may come in parts.

    Raises: TypeError for content that is neither text nor parts; TeacherFault for a part that is
      neither text nor thoughts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, dict) else content
    texts = []
    for part in parts:
        kind = part.get("type", "text")
        if kind in ("text", "output_text"):
            texts.append(part["text"])
        elif kind not in ("thinking", "reasoning"):
            reason = f"the answer holds a part of type '{kind}', which is no text"
            raise TeacherFault(reason, again=False)
    return "".join(texts)


def _used_tokens(usage: Any) -> tuple[int, int] | None:
    """Return the tokens of prompt and answer; None where the usage is missing or makes no sense."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens, answer_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    for count in (prompt_tokens, answer_tokens):
        # isinstance would take true and false for counts.
        if type(count) is not int or not 0 <= count < MOST_TOKENS:
            return None
    return prompt_tokens, answer_tokens


def _why_empty(message: Mapping[str, Any], finish: str) -> str:
    if message.get("refusal"):
        return f"refusal: {shortened(str(message['refusal']))}"
    if message.get("reasoning_content") or message.get("reasoning"):
        used_up = " (the thoughts used up max_tokens)" if finish == "length" else ""
        return f"only thoughts, no answer{used_up}"
    if finish == "stop":
        return "empty answer"
    return f"empty answer, finish_reason {finish}"


def _shown(body: bytes) -> str:
    return shortened(body[:SHOWN_BYTES].decode(errors="replace"))
