"""Fields of the stages besides training, each stage's own group."""

import dataclasses
import math

from slmjax.config.fields import NOT_NEGATIVE, PART, POSITIVE, Check, setting

RATES = Check(
    lambda values: all(0 <= value < math.inf for value in values),
    "hold numbers that are not negative",
)
# Draws of a question have seeds of their own, see evals/question_answers.py.
UP_TO_4096 = Check(lambda value: 0 <= value <= 4096, "be 0 to 4096")
# The number of a band is kept in one byte, whose largest values have other meanings.
UP_TO_250 = Check(lambda value: 0 < value <= 250, "be positive, and 250 at most")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The stage recall: small models on tasks of recall, copying and induction."""

    # The models train with the fields of train and model, except for what this group varies.

    tasks: tuple[str, ...] = setting(
        (), "recall:LENGTH:PAIRS, copy:LENGTH:TOKENS, induction:LENGTH"
    )
    variants: dict = setting({}, "{name: pattern} of the models that are compared")
    rates: tuple[float, ...] = setting(
        (), "learning rates, tried in their order; the best one counts", RATES
    )
    seeds: int = setting(3, "runs of each rate", POSITIVE)
    examples: int = setting(100_000, "training rows, read over and over", POSITIVE)
    tested: int = setting(3000, "test rows, and as many that choose the rate", POSITIVE)
    vocab: int = setting(8192, "tokens of the tasks of recall", POSITIVE)
    enough: float = setting(
        0.99,
        "mean accuracy on the validation rows after which no further rate is tried",
        NOT_NEGATIVE,
    )


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """The stage mixture: small models (proxies) on different mixtures of the sources."""

    # The proxies train with the fields of train and model. Sources of weight 0 are only scored.

    mixtures: dict = setting(
        {},
        "{name: {source: weight}} that are compared; a weights file, natural (by tokens) or "
        "uniform may stand for the weights; empty: mixtures are drawn, and the best one is sought",
    )
    proxies: int = setting(32, "mixtures that are drawn", POSITIVE)
    seeds: int = setting(1, "runs of each mixture", POSITIVE)
    target_tokens: int = setting(
        0,
        "tokens of the run that the mixture is for; each proxy reads so large a part of every "
        "source that it repeats it as often as that run; 0: those of a proxy",
        NOT_NEGATIVE,
    )
    max_epochs: float = setting(
        4.0, "times that the run that the mixture is for may read a source", POSITIVE
    )
    fixed: dict = setting({}, "{source: its share of every mixture that is drawn or sought}")
    basket: tuple[str, ...] = setting(
        (), "sources whose held-out text is scored, all with the same weight; empty: all"
    )
    documents: str = setting(
        "first half",
        "which of the basket's documents are scored: a mixture that was sought on one half is "
        "compared on the other",
        choices=("first half", "second half", "all"),
    )


@dataclasses.dataclass(frozen=True)
class ForecastConfig:
    """The stage forecast: a ladder of sizes predicts the loss of a larger model."""

    # Rungs and target have the shapes of --params, with the fields of train and model at the
    # recipe's own size.

    sizes: tuple[str, ...] = setting(
        ("10m", "50m", "100m"), "parameters of the rungs; three at least, five for good intervals"
    )
    seeds: tuple[int, ...] = setting(
        (2, 1), "runs of each size, in order; the last number holds for all that are left"
    )
    tokens: int = setting(
        1_000_000_000, "tokens that each run reads, the same part of every source", POSITIVE
    )
    target: str = setting("300m", "parameters of the model whose loss is forecast")
    basket: tuple[str, ...] = setting(
        (), "sources whose held-out text is scored, all with the same weight; empty: all"
    )
    measured: tuple[str, ...] = setting(
        (), "work directories of the target's runs; empty: it is not trained yet"
    )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The stage evaluate: what a finished run can do."""

    tasks: tuple[str, ...] = setting(
        (),
        "names of files in $SLMJAX_SHARED/evals, gsm8k_test, gsm8k_train, gsm8k_dev (500 of the "
        "training problems), textbook (the embedded one) or keys of evaluate.files",
    )
    files: dict = setting(
        {},
        "{name: path} of a .jsonl of your own, whose fields are those of a known format, or of a "
        ".txt, whose bits per byte are measured; these are tasks, too",
    )
    items: int = setting(
        0, "most items of a task, drawn by seed: the same for every model; 0: all", NOT_NEGATIVE
    )
    shots: tuple[int, ...] = setting(
        (0,), "worked examples before each word problem; (0, 8) measures without and with 8"
    )
    samples: int = setting(
        0,
        "sampled answers of a word problem, for the vote and pass@k, besides the greedy one",
        UP_TO_4096,
    )
    temperature: float = setting(0.8, "of the sampled answers", POSITIVE)
    max_tokens: int = setting(256, "most tokens of an answer", POSITIVE)
    calculator: bool = setting(
        False, "write the result where the model has written <<48/2=, as Cobbe et al. 2021 do"
    )


@dataclasses.dataclass(frozen=True)
class ReasoningConfig:
    """The stage reasoning: does a model reason about word problems?"""

    problems: str = setting(
        "",
        "word problems in GSM8K's format, of which templates are made; 'examples': the package's "
        "own; empty: GSM8K train in $SLMJAX_SHARED",
    )
    templates: int = setting(200, "most templates of a column", POSITIVE)
    variants: int = setting(10, "of each template in each arm, with other numbers", POSITIVE)
    max_tokens: int = setting(256, "most tokens of an answer", POSITIVE)


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
    """The stage synthesize: a teacher writes a textbook."""

    # Meanings that begin with "openai:" are of fields that only the teacher openai reads.

    teacher: str = setting(
        "program",
        "program (embedded), openai (any OpenAI-compatible endpoint), checkpoint (of the run "
        "--init_from)",
        choices=("program", "openai", "checkpoint"),
    )
    model: str = setting("", "openai: the model that the endpoint serves")
    base_url: str = setting(
        "", "openai: such as http://127.0.0.1:8000/v1; empty: OpenAI; the key is $OPENAI_API_KEY"
    )
    names: dict = setting(
        {},
        "openai: {parameter: what the endpoint calls it, '' where it has none}, e.g. "
        "{'max_tokens': 'max_completion_tokens'}",
    )
    licence: str = setting("", "note on every document; empty: what the teacher says of itself")
    documents: int = setting(
        3600, "documents to ask for; raised later, the earlier ones are kept", POSITIVE
    )
    shard: int = setting(10_000, "documents in a file", POSITIVE)
    topics: str = setting(
        "",
        "a file with a topic on each line, 'subject > area > topic' or any text; empty: all that "
        "the teacher knows",
    )
    audiences: tuple[str, ...] = setting(
        ("children", "students", "undergraduates", "adults"), "or descriptions of your own"
    )
    formats: tuple[str, ...] = setting(
        ("section", "problems", "reasoning", "faq", "table", "dialogue"), "kinds of documents"
    )
    passages: str = setting(
        "",
        "openai: text from which a piece is put into each prompt, as data.sources has it; empty: "
        "none",
    )
    max_tokens: int = setting(1500, "tokens of an answer", POSITIVE)
    temperature: float = setting(0.8, "sampling temperature", NOT_NEGATIVE)
    top_p: float = setting(0.95, "probability mass that is sampled from", NOT_NEGATIVE)
    concurrent: int = setting(64, "requests that are open at once", POSITIVE)
    per_minute: float = setting(0.0, "most requests a minute; 0: no limit", NOT_NEGATIVE)
    retries: int = setting(5, "times that a failed request is asked again", NOT_NEGATIVE)
    timeout: float = setting(300.0, "seconds for one answer", POSITIVE)
    tokens: int = setting(0, "budget in tokens, all starts together; 0: no limit", NOT_NEGATIVE)
    cost: float = setting(0.0, "budget in dollars, all starts together; 0: no limit", NOT_NEGATIVE)
    price: tuple[float, ...] = setting(
        (0.0, 0.0), "dollars for a million tokens of prompts and of answers"
    )
    journal: str = setting("", "a local folder; empty: journal/ in the work directory")
    copies: str = setting(
        "",
        "a folder, local or gs://, that gets the journal's new events every minute; empty: none, "
        "or journal/ in a gs:// workdir",
    )


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """The stage curate: raw text becomes a clean corpus."""

    # The raw text itself is named by data.sources.

    rules: dict = setting(
        {},
        "{source: names of quality rules}, such as rules.web=gopher_quality; others: the rest",
    )
    languages: dict = setting(
        {}, "{source: ISO 639 codes that stay}, such as languages.web=en; others: the rest"
    )
    evals: dict = setting(
        {}, "{set: {path, fields}}: evaluation sets whose items must not be in the corpus"
    )
    ngram: int = setting(5, "words of a shingle", POSITIVE)
    bands: int = setting(14, "bands of hashes; a pair that shares one is compared", UP_TO_250)
    rows: int = setting(8, "hashes of a band", UP_TO_250)
    threshold: float = setting(
        0.75, "Jaccard similarity of shingles from which on a document is a duplicate", PART
    )
    max_removed: float = setting(
        0.9, "share of a source that may go as duplicates before the run stops with an alarm", PART
    )
    max_dropped: float = setting(
        0.5,
        "share of a source that may go by one rule, or as unreadable, before an alarm",
        PART,
    )
    index: str = setting(
        "",
        "folder of an index to extend: what is in it counts as seen; empty: a new one in the work "
        "directory",
    )
    samples: int = setting(5, "dropped documents shown for each reason", NOT_NEGATIVE)
    processes: int = setting(0, "processes; 0: one for each core", NOT_NEGATIVE)
    beam: str = setting(
        "", "Apache Beam's options, with a runner; empty: processes of this machine"
    )
