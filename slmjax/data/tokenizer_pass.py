"""The tokenizer of a prepared folder: the given one, checked on the text, or one trained on it."""

from slmjax.data.heldout import HeldoutChoice
from slmjax.data.preparation_plan import PreparationPlan
from slmjax.errors import UserError
from slmjax.text.files import write_part
from slmjax.text.tokenizer import Tokenizer, train_bpe
from slmjax.text.walk import WORK

# Characters of one piece of text that a given tokenizer is tested with.
TRIAL_PIECE = 5_000
# Share of the texts that encoding and decoding may change. Held-out documents that change are left
# out of bits per byte.
MAX_CHANGED = 0.05
# Characters of a changed text that an error shows: before the first difference, and in all.
SHOWN_BEFORE = 20
SHOWN = 40


def write_tokenizer(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    """Write the tokenizer: the given one, or one that is trained on the sample.

    It is trained without held-out groups. Host 0 writes it, the other hosts wait for it.
    Raises: UserError where the given one loses text.
    """
    path = plan.folder / WORK / "tokenizer.json"
    if plan.tokenizer:
        for source in plan.sources:
            _check_round_trip(plan, plan.tokenizer, source.name)
    if plan.crew.host == 0 and not path.exists():
        tokenizer = plan.tokenizer or _trained(plan, choice)
        write_part(path, tokenizer.content)
    plan.wait({path: 0}, "train the tokenizer")


def _trained(plan: PreparationPlan, choice: HeldoutChoice) -> Tokenizer:
    # The scan of all hosts has written samples into the shared folder.
    texts = []
    for job in plan.jobs("train", all_hosts=True):
        held_out = set(choice.groups[job.unit.source.name].tolist())
        for group, text in job.lines("sample"):
            if group not in held_out:
                texts.append(text)
    plan.crew.progress("tokenizer", 0, 1)
    tokenizer = train_bpe(texts, plan.data.vocab_size, plan.special)
    plan.crew.progress("tokenizer", 1, 1)
    return tokenizer


def _check_round_trip(plan: PreparationPlan, tokenizer: Tokenizer, source: str) -> None:
    """Check that a tokenizer decodes the tokens of a source's text to the same text.

    Otherwise bits per byte would be those of another text.
    Raises: UserError where more than MAX_CHANGED of the tested texts change.
    """
    texts = _trial_texts(plan, source)
    changed = []
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if not _gives_back(tokenizer, text, ids):
            changed.append((text, ids))
    if len(changed) <= MAX_CHANGED * len(texts):
        return
    text, ids = changed[0]
    decoded = tokenizer.decode(ids).removeprefix(" ")
    text, decoded = _around_difference(text, decoded)
    raise UserError(
        f"data.tokenizer: '{plan.data.tokenizer}' loses text: of {len(texts)} documents of "
        f"data.sources.{source} it gives back {len(texts) - len(changed)} as they are; "
        f"{text!r} becomes {decoded!r}. Use a byte-level tokenizer "
        "without a normalizer, or leave data.tokenizer empty to train one."
    )


def _gives_back(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    # A tokenizer may put a blank before a text, which loses nothing.
    return tokenizer.keeps(text, ids) and tokenizer.decode(ids) in (text, f" {text}")


def _trial_texts(plan: PreparationPlan, source: str) -> list[str]:
    """Return the beginning of each piece in a source's sample."""
    texts = []
    for job in plan.jobs("train", all_hosts=True):
        if job.unit.source.name != source:
            continue
        for _, text in job.lines("sample"):
            # A piece may begin with a blank. Many tokenizers put one there and remove it again when
            # they decode, so it would seem lost.
            texts.append(text[:TRIAL_PIECE].lstrip(" "))
    return texts


def _around_difference(text: str, decoded: str) -> tuple[str, str]:
    """Return SHOWN characters of both texts around the first place where they differ."""
    # Where neither differs, the shorter text is the beginning of the longer one.
    difference = min(len(text), len(decoded))
    for place, (character, other) in enumerate(zip(text, decoded)):
        if character != other:
            difference = place
            break
    start = max(0, difference - SHOWN_BEFORE)
    return text[start : start + SHOWN], decoded[start : start + SHOWN]
