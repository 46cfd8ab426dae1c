"""Parses the body of a chat completion, in the variants that OpenAI-compatible endpoints send."""

import json
from collections.abc import Mapping
from typing import Any

from slmjax.synthesize.provider_errors import raise_complaint, shortened
from slmjax.synthesize.teachers import Answer, TeacherFault

# Finish reasons, in lower case, of OpenAI, TGI, Anthropic, Gemini and Mistral.
WHOLE = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")  # the answer is whole
CUT = ("length", "max_tokens", "model_length")  # the answer was cut at a limit
TOKENS_LIMIT = 10**9  # an endpoint that reports so many tokens for one answer is mistaken
SHOWN_BYTES = 10_000  # of a body that is not a completion; an error message quotes from them
# The fields of server-sent events, and comments (":"), with which a stream begins.
STREAM_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b":")
# Fields of a message that say why it has no text.
REASONS = ("refusal", "reasoning_content", "reasoning")
UNEXPLAINED = "empty answer"  # the fault's reason where the provider gives none


def parse_answer(body: bytes) -> Answer:
    """Return the answer in the body of a chat completion.

    Raises:
      Complaint: the provider reports an error inside the body.
      TeacherFault: the body is not a completion, or its text is empty, cannot be written to a file
        or has a part that is no text. Such an answer is paid for; the fault has its tokens where
        the body reports them.
    """
    data = _parse_body(body)
    try:
        choice = data["choices"][0]
        raise_complaint(choice)
        message = choice["message"]
        finish = finish_of(choice.get("finish_reason"))
        # An answer that is rejected below is paid for all the same: each fault carries the tokens.
        tokens = _used_tokens(data.get("usage"))
        text = _text(message.get("content"), tokens)
    except (LookupError, TypeError, AttributeError) as error:
        raise TeacherFault(f"no chat completion: {_shown(body)}") from error
    # JSON can escape half of a surrogate pair, which UTF-8 cannot write. encode puts "?" there.
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise TeacherFault("half a surrogate pair in the text, which no file can hold", tokens)
    if not text.strip():
        reason = _why_empty(message, finish)
        # An answer that is empty without a reason is an accident, and worth another attempt. With
        # a reason, such as a refusal, the same request would fail again.
        raise TeacherFault(reason, tokens, again=reason == UNEXPLAINED)
    return Answer(text, finish, tokens)


def finish_of(finish_reason: Any) -> str:
    """Return "stop" for a whole answer, "length" for a cut one, else the provider's own word."""
    # Some servers leave the reason out; their answer then counts as whole.
    word = str(finish_reason or "stop").lower()
    if word in WHOLE:
        return "stop"
    return "length" if word in CUT else word


def _parse_body(body: bytes) -> Any:
    """Return the parsed JSON of a body. Raises: Complaint, or TeacherFault for broken JSON."""
    content = body.lstrip()
    try:
        is_stream = content.startswith(STREAM_BEGINS)
        data = _join_stream(body) if is_stream else json.loads(body)
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
    Raises: Complaint that a piece reports; ValueError for broken JSON and for a stream that was
      cut; LookupError, TypeError or AttributeError for a piece of another shape.
    """
    text = ""
    reasons: dict[str, str] = {}  # for an empty text
    finish = usage = None
    done = False
    for line in body.splitlines():
        if not line.startswith(b"data:"):  # a comment, another field, or the blank line of an end
            continue
        event = line.removeprefix(b"data:").strip()
        if event == b"[DONE]":
            done = True
            continue
        piece = json.loads(event)
        raise_complaint(piece)
        usage = piece.get("usage") or usage
        for choice in piece.get("choices") or ():
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            for name in REASONS:
                if delta.get(name):
                    reasons[name] = reasons.get(name, "") + str(delta[name])
            finish = choice.get("finish_reason") or finish
    if not finish and not done:
        raise ValueError("the stream was cut")
    message = {"content": text, **reasons}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _text(content: Any, tokens: tuple[int, int] | None) -> str:
    """Return the text of a message's content: a string, one part, a list of parts, or None.

    Parts with the model's thoughts are left out.

    Args:
      tokens: of the answer, for a fault.
    Raises: TeacherFault for a part that is neither text nor thoughts; TypeError, AttributeError or
      LookupError for content of another shape.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, dict) else content
    texts = []
    for part in parts:
        part_type = part.get("type", "text")
        if part_type in ("text", "output_text"):
            texts.append(part["text"])
        elif part_type not in ("thinking", "reasoning"):
            reason = f"the answer holds a part of type '{part_type}', which is no text"
            raise TeacherFault(reason, tokens, again=False)
    return "".join(texts)


def _used_tokens(usage: Any) -> tuple[int, int] | None:
    """Return the tokens of (prompt, answer); None where the usage is missing or makes no sense."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens, answer_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    for count in (prompt_tokens, answer_tokens):
        # isinstance would take true and false for counts.
        if type(count) is not int or not 0 <= count < TOKENS_LIMIT:
            return None
    return prompt_tokens, answer_tokens


def _why_empty(message: Mapping[str, Any], finish: str) -> str:
    """Return why a message has no text; UNEXPLAINED where the provider gives no reason."""
    if message.get("refusal"):
        return f"refusal: {shortened(str(message['refusal']))}"
    if message.get("reasoning_content") or message.get("reasoning"):
        used_up = " (the thoughts used up max_tokens)" if finish == "length" else ""
        return f"only thoughts, no answer{used_up}"
    if finish == "stop":
        return UNEXPLAINED
    return f"empty answer, finish_reason {finish}"


def _shown(body: bytes) -> str:
    """Return the beginning of a body as text in one line, for an error message."""
    return shortened(body[:SHOWN_BYTES].decode(errors="replace"))
