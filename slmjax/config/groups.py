"""Every field of the config with its default, meaning and check: one frozen dataclass for each group.

`Config` is what the launcher makes of a recipe. A room of the library gets its own group of it.
"""

import dataclasses
import math

from slmjax.config.fields import NOT_NEGATIVE, PART, POSITIVE, SHARE, Check, setting

NOT_EMPTY = Check(bool, "name at least one entry")
EVEN = Check(
    lambda value: value > 0 and value % 2 == 0,
    "be positive and even, for the rotary position embedding",
)
RESERVED = Check(lambda value: value == 1, "be 1 in this version: the axis is reserved")
RATES = Check(
    lambda values: all(0 <= value < math.inf for value in values),
    "hold numbers that are not negative",
)
BYTE = Check(lambda value: 0 < value <= 250, "be positive, and 250 at most")
FLOATS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture."""

    vocab_size: int = setting(
        0,
        "rows of the embedding; 0 takes the tokenizer's size, rounded up to a multiple of 128",
        NOT_NEGATIVE,
    )
    width: int = setting(256, "model width D", POSITIVE)
    layers: int = setting(8, "blocks in the stack", POSITIVE)
    heads: int = setting(4, "query heads N", POSITIVE)
    kv_heads: int = setting(2, "key/value heads K; divides heads", POSITIVE)
    head_dim: int = setting(64, "head size H", EVEN)
    ff_width: int = setting(704, "feed-forward width F", POSITIVE)
    pattern: tuple[str, ...] = setting(
        ("attention",),
        'blocks that repeat: "mixer[+channel] [option=value ...]", e.g. "gdn,gdn,gdn,attention rope=False"; mixers: attention (rope, '
        "window, borrows), ssm, gla, gdn, kda (heads, key_dim, value_dim); channels: mlp, none; or module:Class; "
        'blocks before a bar, and after a second one, come once: "attention,|,gdn,gdn,attention,|,attention"',
        NOT_EMPTY,
    )
    share_kv: int = setting(
        1, "attention layers in a row that share one layer's keys and values", POSITIVE
    )
    share_blocks: int = setting(
        1, "times in a row that each block is applied, with the same weights", POSITIVE
    )
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", POSITIVE)
    qk_norm: bool = setting(False, "RMSNorm on queries and keys, per head")
    output_gate: bool = setting(False, "sigmoid gate on attention's output")
    tied: bool = setting(True, "the head is the embedding, transposed")
    multipliers: dict = setting(
        {}, "{group: {init, lr, decay}} for embedding, head, matrix, vector, own; 1 where not named"
    )
    attention: str = setting(
        "auto",
        "attention kernel",
        choices=("auto", "reference", "blockwise", "cudnn", "splash"),
        affects="compile",
    )
    unroll: str = setting(
        "auto",
        "True (a list of layers: fastest on one host's GPUs) or False (a scan: compiles fastest)",
        choices=("auto", "True", "False"),
        affects="compile",
    )
    remat: str = setting(
        "none",
        "none, full, dots, or comma-separated names of activations to keep",
        affects="compile",
    )


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Types of numbers. Parameters and reductions (norms, softmax, logsumexp) are float32."""

    optimizer: str = setting("float32", "first moments of the optimizer", choices=FLOATS)
    compute: str = setting(
        "auto",
        "matrix products: auto is bfloat16 where the device has it, float16 on older GPUs (V100, T4), else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    products: str = setting(
        "compute",
        "training's products in projections and MLP: compute, or float8 (GPUs of capability 8.9 or newer)",
        choices=("compute", "float8"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text, tokenizer and mixture."""

    sources: dict = setting(
        {},
        "{name: {path, weight, field, revision, heldout, max_epochs (read at most so often), score (a field; documents "
        "in its order, '-field' from high to low)}} or 'name:weight=path,...'; empty: embedded textbook",
        affects="order",
    )
    tokenizer: str = setting(
        "", "an existing tokenizer.json; empty: train a byte-level BPE on the text", affects="order"
    )
    vocab_size: int = setting(1024, "size of the tokenizer that is trained", POSITIVE)
    seq_len: int = setting(128, "tokens in a row, T", POSITIVE)
    packing: str = setting(
        "best_fit",
        "best_fit keeps documents whole where it can; concat cuts them at row edges",
        choices=("best_fit", "concat"),
    )
    group_by: str = setting(
        "",
        "field, or regular expression on the id: a group is either held out or trained on, never both",
    )
    heldout: float = setting(
        0.01, "share of each source's text held out, at most 10 MB each", SHARE
    )
    max_bad_share: float = setting(
        0.001,
        "share of malformed or empty records that is skipped before it is an error",
        SHARE,
        affects="order",
    )
    phases: tuple = setting(
        (),
        "[{'until': 0.8, 'weights': {source: weight}}, {'until': 1.0, 'weights': ..., 'ramp': 0.05}]: until and ramp are "
        "shares of the run, over ramp the weights change in a line; empty: the sources' weights",
        affects="order",
    )
    workers: int = setting(
        0,
        "processes that assemble batches; 0: threads of this one",
        NOT_NEGATIVE,
        affects="bookkeeping",
    )
    cache: str = setting(
        "",
        "folder of prepared text; empty: 'prepared' next to the work directory",
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, optimizer and schedule."""

    steps: int = setting(1000, "optimizer steps", POSITIVE, affects="order")
    batch: int = setting(64, "rows in a step, over all devices", POSITIVE)
    microbatches: int = setting(
        1, "parts of a batch, one after the other (gradient accumulation)", POSITIVE
    )
    optimizer: str = setting(
        "adamw", "adamw, or muon (matrices by Muon, the rest by AdamW)", choices=("adamw", "muon")
    )
    lr: float = setting(
        3e-3,
        "peak learning rate; Muon's updates are scaled to AdamW's size, so that it serves both",
        POSITIVE,
    )
    trainable: tuple[str, ...] = setting(
        (),
        "groups (embedding, head, matrix, vector, own) or path patterns that are trained, e.g. 'stack/*'; empty: all",
    )
    weight_decay: float = setting(0.1, "decoupled, on matrices", NOT_NEGATIVE)
    b2: float = setting(0.95, "decay of AdamW's second moment", SHARE)
    eps: float = setting(1e-8, "added to the root of the second moment", NOT_NEGATIVE)
    clip: float = setting(1.0, "largest global gradient norm; 0: none", NOT_NEGATIVE)
    schedule: str = setting(
        "wsd", "wsd (warmup, stable, decay) or cosine", choices=("wsd", "cosine")
    )
    warmup: int = setting(100, "steps of linear warmup", NOT_NEGATIVE)
    decay: float = setting(0.2, "share of the run that decays (wsd)", SHARE)
    z_loss: float = setting(0.0, "coefficient of logsumexp squared", NOT_NEGATIVE)
    spike_sigma: float = setting(
        6.0,
        "skip a step whose loss or gradient norm is this many deviations above its running mean; 0: never",
        NOT_NEGATIVE,
    )
    max_skips: int = setting(
        20, "skipped steps in a row that end the run", POSITIVE, affects="bookkeeping"
    )
    deterministic: bool = setting(
        False,
        "bit-equal resume on GPU too, at some cost (CPU and TPU always are)",
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What a run looks at while it trains."""

    every: int = setting(
        200, "steps between evaluations; 0: only at the end", NOT_NEGATIVE, affects="bookkeeping"
    )
    tokens: int = setting(
        200_000, "held-out tokens of each source in an evaluation", POSITIVE, affects="bookkeeping"
    )
    samples: int = setting(
        4, "completions shown after an evaluation; 0: none", NOT_NEGATIVE, affects="bookkeeping"
    )
    prompts: tuple[str, ...] = setting(
        (),
        "their prompts; empty: beginnings of held-out documents",
        affects="bookkeeping",
        one_text=True,
    )
    sample_tokens: int = setting(64, "length of a completion", NOT_NEGATIVE, affects="bookkeeping")
    textbook: bool = setting(
        False,
        "at the end ask the embedded textbook's held-out questions, whatever the text is",
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What a run keeps."""

    every: int = setting(500, "steps between checkpoints", POSITIVE, affects="bookkeeping")
    keep: int = setting(
        3,
        "newest checkpoints to keep; the start of the decay is kept too",
        POSITIVE,
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run records."""

    every: int = setting(10, "steps between lines of metrics", POSITIVE, affects="bookkeeping")
    tensorboard: bool = setting(False, "write TensorBoard files too", affects="bookkeeping")
    wandb: str = setting("", "Weights & Biases project; empty: off", affects="bookkeeping")
    profile: str = setting("", "steps to profile, 'first:last'; empty: none", affects="bookkeeping")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work."""

    data: int = setting(
        -1, "devices that split the batch; -1: all that are left", affects="compile"
    )
    fsdp: int = setting(
        1,
        "devices that split the batch and hold a share of parameters and optimizer state",
        affects="compile",
    )
    tensor: int = setting(
        1, "devices that split heads, feed-forward and vocabulary", affects="compile"
    )
    sequence: int = setting(1, "reserved", RESERVED, affects="compile")
    expert: int = setting(1, "reserved", RESERVED, affects="compile")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The stage recall: small models on tasks of recall, copying and induction."""

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
class SynthesizeConfig:
    """The stage synthesize: a teacher writes a textbook."""

    teacher: str = setting(
        "program",
        "program (embedded), openai (any OpenAI-compatible endpoint), checkpoint (of the run --init_from)",
        choices=("program", "openai", "checkpoint"),
    )
    model: str = setting("", "openai: the model that the endpoint serves")
    base_url: str = setting(
        "", "openai: such as http://127.0.0.1:8000/v1; empty: OpenAI; the key is $OPENAI_API_KEY"
    )
    names: dict = setting(
        {},
        "openai: {parameter: what the endpoint calls it, '' where it has none}, e.g. {'max_tokens': 'max_completion_tokens'}",
    )
    licence: str = setting("", "note on every document; empty: what the teacher says of itself")
    documents: int = setting(
        3600, "documents to ask for; more later keep the earlier ones", POSITIVE
    )
    shard: int = setting(10_000, "documents in a file", POSITIVE)
    topics: str = setting(
        "",
        "a file with a topic on each line, 'subject > area > topic' or any text; empty: all that the teacher knows",
    )
    audiences: tuple[str, ...] = setting(
        ("children", "students", "undergraduates", "adults"), "or descriptions of your own"
    )
    formats: tuple[str, ...] = setting(
        ("section", "problems", "reasoning", "faq", "table", "dialogue"), "kinds of documents"
    )
    passages: str = setting(
        "",
        "openai: text from which a piece is put into each prompt, as data.sources has it; empty: none",
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
        "a folder, local or gs://, that gets the journal's new events every minute; empty: none, or journal/ in a gs:// workdir",
    )


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """The stage curate: raw text becomes a clean corpus."""

    rules: dict = setting(
        {},
        "{source: names of quality rules}, such as rules.web=gopher_quality; none for other sources",
    )
    languages: dict = setting(
        {}, "{source: ISO 639 codes that stay}, such as languages.web=en; all stay in other sources"
    )
    evals: dict = setting(
        {}, "{set: {path, fields}}: evaluation sets whose items must not be in the corpus"
    )
    ngram: int = setting(5, "words of a shingle", POSITIVE)
    bands: int = setting(14, "bands of hashes; a pair that shares one is compared", BYTE)
    rows: int = setting(8, "hashes of a band", BYTE)
    threshold: float = setting(
        0.75, "Jaccard similarity of shingles from which on a document is a duplicate", PART
    )
    max_removed: float = setting(
        0.9, "share of a source that may go as duplicates before the run stops with an alarm", PART
    )
    max_dropped: float = setting(
        0.5,
        "share of a source that may go for one reason, as unreadable or by a rule, before an alarm",
        PART,
    )
    index: str = setting(
        "",
        "folder of an index to extend: what is in it counts as seen; empty: a new one in the work directory",
    )
    samples: int = setting(5, "dropped documents shown for each reason", NOT_NEGATIVE)
    processes: int = setting(0, "processes; 0: one for each core", NOT_NEGATIVE)
    beam: str = setting(
        "", "Apache Beam's options, with a runner; empty: processes of this machine"
    )


STAGES = ("train", "prepare", "synthesize", "curate", "recall")
STAGE_OF = {"study": "recall", "synthesize": "synthesize", "curate": "curate"}
"""Groups that one stage reads; all others belong to training."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a recipe says, checked."""

    stage: str = setting(
        "train",
        "what to do: train, prepare (tokenize only), synthesize, curate or recall; the last three have recipes of their own",
    )
    task: str = setting(
        "lm",
        "what a run learns: lm (next tokens), recall or module:Name, with options: 'mine:Task rate=3'",
    )
    seed: int = setting(
        0, "of the initial parameters, the data order and sampling", affects="chance"
    )
    model: ModelConfig = ModelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    study: StudyConfig = StudyConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    curate: CurateConfig = CurateConfig()
