"""Tokenizers: byte-level BPE trained on the text, or any tokenizer.json that keeps every byte."""

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
from slmjax.text.byte_tokens import byte_level_bytes, fallback_bytes, is_byte_level

EOT = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IMAGE, CALC, RESULT, CALC_END = "<|image|>", "<|calc|>", "<|result|>", "<|/calc|>"
SPECIAL = {
    EOT: "begins and ends every document; GPT-2 (2019)",
    TURN_START: "begins a turn of a dialogue; ChatML (OpenAI 2023), as Qwen and SmolLM2 have it",
    TURN_END: "ends a turn, and so a completion; ChatML",
    IMAGE: "the place of a piece of an image; Llama 3.2",
    CALC: "begins <|calc|>48/2<|result|>24<|/calc|>; Cobbe et al. 2021 write <<48/2=24>>",
    RESULT: "ends what the model writes of a calculation; the calculator writes the rest",
    CALC_END: "ends the calculator's result",
    **{f"<|reserved_special_token_{i}|>": "spare, as Llama 3 has them" for i in range(9)},
}
"""The special tokens of every tokenizer that is trained here: what each is for, and its source.

A token's place in this table is its id, so that an id means the same in all these tokenizers. The
special tokens count among data.vocab_size. Whoever changes the table gets other tokenizers, and
all text is prepared again.
"""
# Names of the end of text in published tokenizers; the first one that a tokenizer has is taken.
EOT_NAMES = (EOT, "</s>", "<|end_of_text|>", TURN_END, "<eos>")
TURN_END_NAMES = (TURN_END, "<|eot_id|>", "<end_of_turn>")  # of ChatML, Llama 3 and Gemma
HOSTILE = (
    "\u212b e\u0301 \ufb01 \u0130 \u3000\u00a0 \t\r\n\n  A\u2028\u200b\u2581 "
    "\u0928\u0915\u094d\u0937 \U0001f468\u200d\U0001f469 "
)
"""Text that normalisers and splitters like to change: canonical forms, ligatures, blanks."""

# Texts of more characters are encoded in pieces, as the library keeps some hundred bytes for each
# token of what it encodes at once.
PIECE = 200_000
AT_ONCE = 4  # pieces of one text that are encoded at once
REACH = 2_000_000  # a place to cut is looked for in so many characters after the first PIECE
TRIES = 20  # places that are tried for each pattern below
AROUND = 256  # characters on either side of a cut whose tokens are compared
# Where a cut is tried first: before the space between two letters, and after the line feed between
# two words.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\w\n)(?=\w)")
# Where it is tried next: the same between any characters but blanks, and after the full stop,
# exclamation mark, question mark and comma of Chinese and Japanese.
_OTHER_PLACES = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)|(?<=[\u3002\uff01\uff1f\uff0c])(?=\w)")


class Special(NamedTuple):
    """A special token in Tokenizer.sequence, as opposed to a text that spells its name."""

    name: str


class Tokenizer:
    """Text to token ids and back.

    A special token's name in a text is read as plain text, so that no document can end itself.
    """

    def __init__(self, text: str, where: str = "tokenizer.json"):
        """Read the content of a tokenizer.json; `where` is its path, for messages.

        Raises: UserError where it cannot be read or does not keep bytes.
        """
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(text)
            self._json = json.loads(text)
        except Exception as error:
            # The library raises plain Exception.
            problem = f"{where} is no tokenizer.json of the tokenizers library: {error}"
            raise UserError(f"data.tokenizer: {problem}") from error
        self._text = text
        # Despite its name: a special token's name in a text is encoded as ordinary tokens.
        self._library.encode_special_tokens = True
        # Some published files cut every text at 512 tokens.
        self._library.no_truncation()
        self._library.no_padding()
        # With dropout a text would have other tokens each time.
        if (self._json.get("model") or {}).get("dropout"):
            self._library.model.dropout = None
        self._special: dict[str, int] = {}
        for token in self._json.get("added_tokens") or ():
            if token.get("special"):
                self._special[token["content"]] = token["id"]
        self._keep_special_out_of_text(where)
        names = [name for name in EOT_NAMES if name in self._special]
        if not names:
            problem = f"{where} has no end-of-text among its special tokens"
            looked_for = ", ".join(EOT_NAMES)
            raise UserError(f"data.tokenizer: {problem} (looked for {looked_for}).")
        self.eot: int = self._special[names[0]]
        turn_ends = (self._special[name] for name in TURN_END_NAMES if name in self._special)
        # A dict keeps the order and drops an id that comes twice.
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((self.eot, *turn_ends)))
        """The ids that end a document or a turn, and so a completion: the end of text first."""
        self._byte_level = is_byte_level(self._json, where)
        self._added_blanks = self._blanks_before_text()

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
        """SHA-256 of `content`, in hexadecimal."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @property
    def special(self) -> dict[str, int]:
        """Special tokens by name; they never come out of `encode`."""
        return dict(self._special)

    def special_id(self, name: str) -> int:
        """Return the id of a special token.

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

        Only this method puts special tokens into a sequence. Each text is encoded by itself, and
        stays text even if it spells the name of a special token: `sequence("<|im_end|>")` returns
        ordinary tokens, `sequence(Special("<|im_end|>"))` one id.
        Raises: UserError for a special token that this tokenizer does not have.
        """
        texts = [part for part in parts if isinstance(part, str)]
        encoded = iter(self.encode_batch(texts))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids += next(encoded)
            else:
                ids.append(self.special_id(part.name))
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without any special token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text; in parallel, unless TOKENIZERS_PARALLELISM=false."""
        pieces_by_text = [self._pieces(text) for text in texts]
        # One call for all pieces, so that the library's threads share them.
        encoded = self._encode_pieces(list(itertools.chain.from_iterable(pieces_by_text)))
        ids_by_text = []
        for pieces in pieces_by_text:
            ids = next(encoded)
            for _ in pieces[1:]:
                ids.extend(next(encoded))
            ids_by_text.append(ids)
        return ids_by_text

    def encode_arrays(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the token ids of each text as an array of uint16, or uint32 if ids need it.

        A text longer than PIECE is encoded a few pieces at a time, so that memory stays at a few
        bytes for each byte of the text.
        """
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        short = [text for text in texts if len(text) <= PIECE]
        ids_of_short = iter(self.encode_batch(short))
        for text in texts:
            if len(text) <= PIECE:
                yield np.array(next(ids_of_short), dtype)
                continue
            pieces = self._pieces(text)
            parts: list[np.ndarray] = []
            for start in range(0, len(pieces), AT_ONCE):
                for ids in self._encode_pieces(pieces[start : start + AT_ONCE]):
                    parts.append(np.array(ids, dtype))
            yield np.concatenate(parts)

    def decode(self, ids: Iterable[Any]) -> str:
        """Return the text of ids (integers of any library), without special tokens.

        Bytes that are no UTF-8 become the replacement character.
        """
        return self._library.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        """Return the exact bytes of each id; b"" for special tokens and for ids without a token."""
        bytes_of = byte_level_bytes if self._byte_level else fallback_bytes
        # Tokens that were added to the model's vocabulary are stored as plain text.
        added = {token["id"]: token["content"] for token in self._json.get("added_tokens") or ()}
        table = [b""] * self.vocab_size
        for token, index in self._library.get_vocab(with_added_tokens=True).items():
            if index not in added:
                table[index] = bytes_of(token)
            elif added[index] not in self._special:
                table[index] = added[index].encode()
        return table

    def keeps(self, text: str, ids: Iterable[Any]) -> bool:
        """Whether `ids` have exactly the bytes of `text`, or those and one space before them."""
        table = self._bytes
        kept = b"".join([table[i] for i in ids])
        whole = text.encode("utf-8", "surrogatepass")
        return kept == whole or kept == b" " + whole

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, byte for byte as it was read."""
        from etils import epath

        from slmjax.text.files import write_atomic

        write_atomic(epath.Path(path), self._text)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return self.token_bytes()

    def _keep_special_out_of_text(self, where: str) -> None:
        """Make texts that spell a special token's name give ordinary tokens.

        A Unigram model takes each piece of its vocabulary wherever it stands, special tokens too.
        Their names are therefore cut behind the first letter before the model sees them.
        Raises: UserError where a text gives a special token all the same.
        """
        from tokenizers import Regex, pre_tokenizers

        if names := self._names_read_as_special():
            first_letters = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
            cuts = pre_tokenizers.Split(Regex("|".join(first_letters)), "isolated")
            splitters = [splitter for splitter in (self._library.pre_tokenizer, cuts) if splitter]
            self._library.pre_tokenizer = pre_tokenizers.Sequence(splitters)
        if names := self._names_read_as_special():
            problem = f"takes the text '{names[0]}' for its special token of that name"
            advice = "use one whose special tokens never stand for text"
            raise UserError(f"data.tokenizer: {where} {problem}; {advice}.")

    def _names_read_as_special(self) -> list[str]:
        """Return the names of special tokens that, encoded as a text, give a special token."""
        special_ids = set(self._special.values())
        names = []
        for name in self._special:
            if special_ids & set(self._encode_alone(name)):
                names.append(name)
        return names

    def _blanks_before_text(self) -> int:
        """Return how many blanks the tokenizer puts before a text: 1 for SentencePiece's kind.

        A cut between two pieces takes that many away.
        """
        splitter = self._library.pre_tokenizer
        words = splitter.pre_tokenize_str("it is\nso") if splitter else []
        lengths = [end - start for _, (start, end) in words]
        # "it", " is", "\n", "so": the words of GPT-2. A piece may then begin with the text's own
        # blank, and gets no second one, even if the tokenizer puts one before other texts.
        if self._byte_level and lengths == [2, 3, 1, 2]:
            return 0
        puts_blank = self._bytes_of("a") == b" a"
        keeps_blank = self._bytes_of(" a").endswith(b" a")
        return int(puts_blank and keeps_blank)

    def _bytes_of(self, text: str) -> bytes:
        return b"".join(self._bytes[i] for i in self._encode_alone(text))

    def _encode_alone(self, text: str) -> list[int]:
        # Not as a batch, which starts the library's threads: a process with threads must not fork.
        return self._library.encode(text, add_special_tokens=False).ids

    def _encode_pieces(self, pieces: Sequence[str]) -> Iterator[list[int]]:
        # One list at a time, since a list of integers is many times as large as its text.
        for piece in self._library.encode_batch_fast(pieces, add_special_tokens=False):
            yield piece.ids

    def _pieces(self, text: str) -> list[str]:
        """Return a text in pieces of PIECE characters or more, cut where that keeps its tokens.

        Blanks that the tokenizer puts before each piece are taken from the text at the cut.
        """
        pieces, start = [], 0
        while len(text) - start > PIECE:
            cut = self._place_to_cut(text, start + PIECE)
            if cut is None:
                break
            pieces.append(text[start:cut])
            start = cut + self._added_blanks
        return [*pieces, text[start:]]

    def _place_to_cut(self, text: str, place: int) -> int | None:
        """Return the first place from `place` on where a cut keeps the tokens on both sides.

        Only a few places within REACH are tried. If none of them will do, the result is None. But
        if the text goes on beyond REACH, such as a number of three million digits, the result is
        `place` if a cut there loses no character.
        """
        for pattern in (_BETWEEN_WORDS, _OTHER_PLACES):
            matches = pattern.finditer(text, place, place + REACH)
            for match in itertools.islice(matches, TRIES):
                cut = match.start()
                # The blank that the tokenizer puts before a piece must replace one at the cut.
                if self._added_blanks and text[cut] != " ":
                    continue
                whole, parts = self._ids_around(text, cut)
                if whole == parts:
                    return cut
        if len(text) - place > REACH and not self._added_blanks:
            whole, parts = self._ids_around(text, place)
            if self.decode(whole) == self.decode(parts):
                return place
        return None

    def _ids_around(self, text: str, cut: int) -> tuple[list[int], list[int]]:
        """Return the token ids of the text around a cut: encoded as one, and as two pieces."""
        left = text[max(0, cut - AROUND) : cut]
        right = text[cut : cut + AROUND]
        pieces = [left + right, left, right[self._added_blanks :]]
        whole, ids_left, ids_right = self._encode_pieces(pieces)
        return whole, ids_left + ids_right


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str] = tuple(SPECIAL),
) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` tokens (fewer where the text has too few pairs).

    The first ids are the special tokens, the next 256 the bytes. Each digit is a token of its own,
    which makes arithmetic easier to learn (Singh and Strouse 2024, arXiv:2402.14903).
    Raises: UserError if vocab_size cannot hold the special tokens and the bytes.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = 256 + len(special)
    if vocab_size < smallest:
        parts = f"{len(special)} special tokens and 256 bytes"
        needed = f"a byte-level tokenizer needs at least {smallest} ({parts})"
        raise UserError(f"data.vocab_size is {vocab_size}; {needed}.")
    library = Library(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        # Sorted, since the library returns a set and the order is that of the ids.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.to_str())


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder (local or gs://).

    Raises: UserError where it is missing, cannot be read, has no end-of-text token or does not keep
      bytes.
    """
    from etils import epath

    file = epath.Path(path).expanduser()
    try:
        if file.is_dir():
            file = file / "tokenizer.json"
        text = file.read_text()
    except (OSError, UnicodeDecodeError, ImportError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        problem = f"cannot read '{path}': {reason}"
        raise UserError(f"data.tokenizer: {problem}; expected a tokenizer.json.") from error
    return Tokenizer(text, str(path))
