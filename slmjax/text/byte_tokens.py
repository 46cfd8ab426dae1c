"""The exact bytes of each token, and the check that a tokenizer.json keeps every byte of a text."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from slmjax.errors import UserError

# Bytes that never occur in UTF-8.
_NOT_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# SentencePiece writes this character for a space.
_SPACE = "\u2581"


def is_byte_level(tokenizer: Mapping[str, Any], where: str) -> bool:
    """Return True for byte-level BPE, and False for BPE or Unigram with byte fallback.

    Args:
      tokenizer: the content of a tokenizer.json.
      where: its path, for messages.
    Raises: UserError for any other kind, which would lose text.
    """
    model = tokenizer.get("model") or {}
    vocab = model.get("vocab") or {}
    # Unigram lists its pieces with their scores; BPE maps them to ids.
    tokens = set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    # "ByteLevel" may be at any depth of these two.
    components = json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])
    if '"ByteLevel"' in components:
        alphabet = _byte_alphabet()
        missing = [character for character in alphabet if character not in tokens]
        if all(alphabet[character][0] in _NOT_IN_UTF8 for character in missing):
            return True
        problem = f"is byte-level but lacks {len(missing)} of the 256 bytes"
        raise UserError(f"data.tokenizer: {where} {problem}, so it would drop text.")
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in tokens for byte in range(256)):
        return False
    model_type = model.get("type", "BPE")
    problem = f"is {model_type} without bytes, so it would lose text"
    raise UserError(f"data.tokenizer: {where} {problem}; use byte-level BPE or byte fallback.")


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a token of byte-level BPE."""
    alphabet = _byte_alphabet()
    # Tokens that were added to the vocabulary may hold characters outside of the alphabet.
    return b"".join(alphabet.get(character) or character.encode() for character in token)


def fallback_bytes(token: str) -> bytes:
    """Return the bytes of a token of a tokenizer with byte fallback, where "<0x0A>" is one byte."""
    match = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    if match:
        return bytes.fromhex(match[1])
    return token.replace(_SPACE, " ").encode()


@functools.cache
def _byte_alphabet() -> dict[str, bytes]:
    """Return {character: byte} of the printable characters that byte-level BPE writes for bytes.

    Source: bytes_to_unicode of GPT-2's encoder (Radford et al. 2019).
    """
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    # A printable byte of Latin-1 is written as its own character.
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    # All other bytes get the characters from 256 on, in order.
    next_character = 256
    for byte in range(256):
        if byte not in printable:
            alphabet[chr(next_character)] = bytes([byte])
            next_character += 1
    return alphabet
