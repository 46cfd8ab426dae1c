"""Tokenizers: a byte-level BPE trained on the text, or any existing tokenizer.json whose tokens have exact bytes."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmjax.errors import UserError, nearest

EOT = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IMAGE, CALC, RESULT, CALC_END = "<|image|>", "<|calc|>", "<|result|>", "<|/calc|>"
SPECIAL = {
    EOT: "begins and ends every document; GPT-2 (2019)",
    TURN_START: "begins a turn of a dialogue; ChatML (OpenAI 2023), as Qwen and SmolLM2 have it",
    TURN_END: "ends a turn, and so a completion; ChatML",
    IMAGE: "the place of a piece of an image; Llama 3.2",
    CALC: "begins <|calc|>48/2<|result|>24<|/calc|>; Cobbe et al. 2021 write <<48/2=24>>",
    RESULT: "ends what the model writes of it; the calculator writes what follows",
    CALC_END: "ends the calculator's result",
    **{f"<|reserved_special_token_{i}|>": "spare, as Llama 3 has them" for i in range(9)},
}
"""The special tokens of every tokenizer that is trained here: what each is for, and its source.

The place in this table is the id, so that an id means the same in all of them. They count among
data.vocab_size. Another table makes other tokenizers: text is then prepared again.
"""
EOT_NAMES = (EOT, "</s>", "<|end_of_text|>", TURN_END, "<eos>")
TURN_END_NAMES = (TURN_END, "<|eot_id|>", "<end_of_turn>")  # of ChatML, Llama 3 and Gemma
HOSTILE = "\u212b e\u0301 \ufb01 \u0130 \u3000\u00a0 \t\r\n\n  A\u2028\u200b\u2581 \u0928\u0915\u094d\u0937 \U0001f468\u200d\U0001f469 "
"""What normalisers and splitters like to change: signs with a canonical form, ligatures, blanks."""
AT_ONCE = 4  # pieces
REACH, TRIES, AROUND = (
    2_000_000,
    20,
    256,
)  # characters behind a piece, places and characters around them that are tried
PIECE = 200_000  # characters; longer texts are encoded in pieces, as the library keeps some hundred bytes for each token of a text


class Special(NamedTuple):
    """A special token of a sequence, told apart from a text that has its name.

    See Tokenizer.sequence.
    """

    name: str


class Tokenizer:
    """Text to token ids and back; special tokens that stand in a text are read as plain text, so no document can end itself."""

    def __init__(self, text: str, where: str = "tokenizer.json"):
        """`text` is the content of a tokenizer.json. Raises: UserError where it cannot be read or does not keep bytes."""
        from tokenizers import Tokenizer as Library

        try:
            self._library, self._json = Library.from_str(text), json.loads(text)
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"data.tokenizer: {where} is no tokenizer.json of the tokenizers library: {error}"
            ) from error
        self._text = text
        self._library.encode_special_tokens = True
        self._library.no_truncation()  # some published files cut every text at 512 tokens
        self._library.no_padding()
        if (self._json.get("model") or {}).get(
            "dropout"
        ):  # or a text would have other tokens each time
            self._library.model.dropout = None
        self._special = {
            t["content"]: t["id"] for t in self._json.get("added_tokens") or () if t.get("special")
        }
        self._keep_special_out_of_text(where)
        names = [name for name in EOT_NAMES if name in self._special]
        if not names:
            raise UserError(
                f"data.tokenizer: {where} has no end-of-text among its special tokens (looked for {', '.join(EOT_NAMES)})."
            )
        self.eot: int = self._special[names[0]]
        turns = (self._special[name] for name in TURN_END_NAMES if name in self._special)
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((self.eot, *turns)))
        """The ids that end a document or a turn, and so a completion: the end of text first."""
        self._byte_level = _check_bytes(self._json, where)
        splitter = self._library.pre_tokenizer
        words = splitter.pre_tokenize_str("it is\nso") if splitter else []
        splits = self._byte_level and [end - start for _, (start, end) in words] == [2, 3, 1, 2]
        # SentencePiece's kind puts a blank before a text, so a cut takes one away: 1, else 0.
        self._blank = (
            0 if splits else int(self._bytes_of("a") == b" a" == self._bytes_of(" a")[-2:])
        )

    def __reduce__(self) -> tuple:
        return Tokenizer, (self._text,)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values())

    @property
    def content(self) -> str:
        """The tokenizer.json, as it came."""
        return self._text

    @cached_property
    def sha256(self) -> str:
        """Hash of the tokenizer.json, which is kept as it came."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @cached_property
    def _bytes(self) -> list[bytes]:
        return self.token_bytes()

    @property
    def special(self) -> dict[str, int]:
        """Special tokens by name; they never come out of `encode`."""
        return dict(self._special)

    def special_id(self, name: str) -> int:
        """The id of a special token.

        Raises: UserError where this tokenizer does not have it.
        """
        if name in self._special:
            return self._special[name]
        if name not in SPECIAL:
            close = nearest(name, self._special)
            raise UserError(f"the tokenizer has no special token '{name}'.{close}")
        raise UserError(
            f"the tokenizer has no special token '{name}': it was given, or trained before ids "
            "were reserved; a tokenizer that is trained now has it."
        )

    def sequence(self, *parts: str | Special) -> list[int]:
        """Return the ids of texts and special tokens, in order.

        Nothing else puts a special token into a sequence.
        Each text is encoded by itself. One that holds the name of a special token stays text:
        `sequence("<|im_end|>")` are ordinary tokens, `sequence(Special("<|im_end|>"))` is one id.
        Raises: UserError for a special token that this tokenizer does not have.
        """
        texts = iter(self.encode_batch([part for part in parts if isinstance(part, str)]))
        out: list[int] = []
        for part in parts:
            out += next(texts) if isinstance(part, str) else [self.special_id(part.name)]
        return out

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any special token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts; parallel unless TOKENIZERS_PARALLELISM=false."""
        pieces = [self._pieces(text) for text in texts]
        encoded = iter(
            self._library.encode_batch_fast(
                [p for some in pieces for p in some], add_special_tokens=False
            )
        )
        out = []
        for some in pieces:
            ids = next(encoded).ids
            for _ in some[1:]:
                ids.extend(next(encoded).ids)
            out.append(ids)
        return out

    def encode_arrays(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """`encode_batch` as arrays, one text after the other; a long text needs a few bytes for each of its own."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        short = [text for text in texts if len(text) <= PIECE]
        lists = iter(self.encode_batch(short))
        for text in texts:
            if len(text) <= PIECE:
                yield np.array(next(lists), dtype)
                continue
            pieces, parts = self._pieces(text), []
            for start in range(0, len(pieces), AT_ONCE):
                encoded = self._library.encode_batch_fast(
                    pieces[start : start + AT_ONCE], add_special_tokens=False
                )
                parts += [np.array(piece.ids, dtype) for piece in encoded]
            yield np.concatenate(parts)

    def decode(self, ids: Iterable[Any]) -> str:
        """The text of ids (integers of any library), without special tokens; bytes that are no UTF-8 become the replacement character."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        """The exact bytes of each id; b"" for special tokens and for ids that stand for nothing."""
        alphabet = _byte_alphabet()
        added = {t["id"]: t["content"] for t in self._json.get("added_tokens") or ()}
        out = [b""] * self.vocab_size
        for token, index in self._library.get_vocab(with_added_tokens=True).items():
            if index in added:
                out[index] = b"" if added[index] in self._special else added[index].encode()
            elif self._byte_level:
                out[index] = b"".join(alphabet[c] if c in alphabet else c.encode() for c in token)
            else:
                fallback = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
                out[index] = (
                    bytes.fromhex(fallback[1])
                    if fallback
                    else token.replace("\u2581", " ").encode()
                )
        return out

    def keeps(self, text: str, ids: Iterable[Any]) -> bool:
        """Whether the tokens of a text have all its bytes, but for one space before it."""
        table = self._bytes
        kept, whole = b"".join([table[i] for i in ids]), text.encode("utf-8", "surrogatepass")
        return kept == whole or kept == b" " + whole

    def _keep_special_out_of_text(self, where: str) -> None:
        """Cut the names of special tokens that the model would find in a text.

        Unigram finds each piece of its vocabulary wherever it stands.
        Raises: UserError where a text gives one all the same.
        """
        from tokenizers import Regex, pre_tokenizers

        if names := self._named_by_text():
            first_letters = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
            cuts = pre_tokenizers.Split(Regex("|".join(first_letters)), "isolated")
            splitters = [splitter for splitter in (self._library.pre_tokenizer, cuts) if splitter]
            self._library.pre_tokenizer = pre_tokenizers.Sequence(splitters)
        if names := self._named_by_text():
            raise UserError(
                f"data.tokenizer: {where} takes the text '{names[0]}' for its special token of that name; "
                "use one whose special tokens never stand for text."
            )

    def _named_by_text(self) -> list[str]:
        """Special tokens that come out of their own name as a text."""
        special = set(self._special.values())

        def ids(name: str) -> set[int]:
            return set(self._library.encode(name, add_special_tokens=False).ids)

        return [name for name in self._special if special & ids(name)]

    def _bytes_of(self, text: str) -> bytes:
        return b"".join(
            self._bytes[i] for i in self._library.encode(text, add_special_tokens=False).ids
        )

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, byte for byte as it was read."""
        from etils import epath

        from slmjax.text.files import write_atomic

        write_atomic(epath.Path(path), self._text)

    def _pieces(self, text: str) -> list[str]:
        """Cut a long text where that does not change its tokens."""
        if len(text) <= PIECE:
            return [text]
        out, start = [], 0
        while len(text) - start > PIECE:
            cut = self._cut(text, start + PIECE)
            if cut is None:
                break
            out.append(text[start:cut])
            start = cut + self._blank
        return [*out, text[start:]]

    def _cut(self, text: str, place: int) -> int | None:
        """The first place from `place` on, of a few that are tried, where the tokens on both sides stay as they are.

        Where a very long stretch has none, such as a number of a million digits, it is cut all the same if no character is lost.
        """
        for pattern in (_BETWEEN_WORDS, _BETWEEN_SENTENCES):
            for found in itertools.islice(pattern.finditer(text, place, place + REACH), TRIES):
                if self._blank and text[found.start()] != " ":
                    continue
                whole, parts = self._ids_around(text, found.start())
                if whole == parts:
                    return found.start()
        if len(text) - place > REACH and not self._blank:
            whole, parts = self._ids_around(text, place)
            if self.decode(whole) == self.decode(parts):
                return place
        return None

    def _ids_around(self, text: str, cut: int) -> tuple[list[int], list[int]]:
        """Token ids of the text around a cut, not cut and cut."""
        left, right = text[max(0, cut - AROUND) : cut], text[cut : cut + AROUND]
        parts = [left, right[self._blank :]]
        encoded = self._library.encode_batch_fast([left + right, *parts], add_special_tokens=False)
        whole, *parts = (piece.ids for piece in encoded)
        return whole, parts[0] + parts[1]


# Tokenizers that put a space before a text, and tokens that hold a space, forbid some of these places.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\w\n)(?=\w)")
_BETWEEN_SENTENCES = re.compile(
    r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)|(?<=[\u3002\uff01\uff1f\uff0c])(?=\w)"
)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str] = tuple(SPECIAL),
) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` tokens (fewer where the text has too few pairs).

    The ids begin with the special tokens, then 256 bytes. Digits are tokens of their own:
    arithmetic is easier to learn so (Singh and Strouse 2024, arXiv:2402.14903).
    Raises: UserError if vocab_size cannot hold the special tokens and the bytes.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    least = 256 + len(special)
    if vocab_size < least:
        raise UserError(
            f"data.vocab_size is {vocab_size}; a byte-level tokenizer needs at least {least} ({len(special)} special tokens and 256 bytes)."
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.to_str())


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder (local or gs://).

    Raises: UserError where it is missing, cannot be read, has no end-of-text token or does not keep bytes.
    """
    from etils import epath

    file = epath.Path(path).expanduser()
    try:
        file = file / "tokenizer.json" if file.is_dir() else file
        text = file.read_text()
    except (OSError, UnicodeDecodeError, ImportError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"data.tokenizer: cannot read '{path}': {reason}; expected a tokenizer.json."
        ) from error
    return Tokenizer(text, str(path))


def _check_bytes(tokenizer: dict[str, Any], where: str) -> bool:
    """True for byte-level BPE, False for BPE or Unigram with byte fallback; anything else loses text and is refused."""
    model = tokenizer.get("model") or {}
    kind, vocab = model.get("type", "BPE"), model.get("vocab") or {}
    tokens = set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    layers = json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])
    if '"ByteLevel"' in layers:
        missing = [c for c in _byte_alphabet() if c not in tokens]
        # bytes that never occur in UTF-8 may be missing: C0, C1 and F5 to FF
        if (
            len(
                [
                    c
                    for c in missing
                    if _byte_alphabet()[c][0] not in (0xC0, 0xC1, *range(0xF5, 0x100))
                ]
            )
            == 0
        ):
            return True
        raise UserError(
            f"data.tokenizer: {where} is byte-level but lacks {len(missing)} of the 256 bytes, so it would drop text."
        )
    if model.get("byte_fallback") and all(f"<0x{i:02X}>" in tokens for i in range(256)):
        return False
    raise UserError(
        f"data.tokenizer: {where} is {kind} without bytes, so it would lose text; use byte-level BPE or byte fallback."
    )


def _byte_alphabet() -> dict[str, bytes]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {
        **{chr(b): bytes([b]) for b in printable},
        **{chr(256 + i): bytes([b]) for i, b in enumerate(others)},
    }
