"""The fields of training with default, meaning and check, one frozen dataclass for each group.

`Config` is what the launcher makes of a recipe. Each part of the library gets only its own group.
"""

import dataclasses

from slmjax.config.fields import NOT_NEGATIVE, POSITIVE, SHARE, Check, setting
from slmjax.config.stage_groups import (
    CurateConfig,
    EvaluateConfig,
    ForecastConfig,
    MixtureConfig,
    ReasoningConfig,
    StudyConfig,
    SynthesizeConfig,
)

NOT_EMPTY = Check(bool, "name at least one entry")
# The rotary embedding rotates pairs of dimensions.
EVEN = Check(
    lambda value: value > 0 and value % 2 == 0,
    "be positive and even, for the rotary position embedding",
)
# The axis is declared already, so that configs need not change once it is used.
RESERVED = Check(lambda value: value == 1, "be 1 in this version: the axis is reserved")
# Types of the optimizer's first moments, which are kept from step to step.
FLOATS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture."""

    # Read by models/pattern.py, which makes layers from it.

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
        'blocks that repeat: "mixer[+channel] [option=value ...]", e.g. "gdn,gdn,gdn,attention '
        'rope=False"; mixers: attention (options: rope, window, borrows) and ssm, gla, gdn, kda '
        "(options of each: heads, key_dim, value_dim); channels: mlp, none; or module:Class; "
        "blocks before the first bar and after the second come once: "
        '"attention,|,gdn,gdn,attention,|,attention"',
        NOT_EMPTY,
    )
    share_kv: int = setting(
        1, "attention layers in a row that share one layer's keys and values", POSITIVE
    )
    share_blocks: int = setting(
        1, "times in a row that each block is applied, with the same weights", POSITIVE
    )
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", POSITIVE)
    rope_scaling: str = setting(
        "",
        "positions of layers without a window, in rows longer than those of the parent: "
        "'theta=40000' (another base) or 'yarn factor=4 trained=1024' (trained: its tokens of a "
        "row); empty: as they were",
    )
    qk_norm: bool = setting(False, "RMSNorm on queries and keys, per head")
    output_gate: bool = setting(False, "sigmoid gate on attention's output")
    tied: bool = setting(True, "the head is the embedding, transposed")
    multipliers: dict = setting(
        {},
        "{group: {init, lr, decay}} for embedding, head, matrix (its part residual writes into the "
        "residual stream), vector (its part final_norm is the gain before the head), own "
        "(parameters of your own mixers that are not declared); init: not for own; decay: for "
        "head, matrix and residual only; 1 where not named",
    )
    transfer: tuple[str, ...] = setting(
        (),
        "set by --params: what model.multipliers and train.decay_lr were set to for the new size, "
        "and why, one line each",
        affects="bookkeeping",
    )
    attention: str = setting(
        "auto",
        "attention kernel",
        choices=("auto", "reference", "blockwise", "cudnn", "splash"),
        affects="compile",
    )
    # A text and not a bool, as it has a third choice.
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

    # Read by models/resolve.py, which knows the device.

    optimizer: str = setting("float32", "first moments of the optimizer", choices=FLOATS)
    compute: str = setting(
        "auto",
        "matrix products: auto is bfloat16 where the device has it, float16 on older GPUs (V100, "
        "T4), else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    products: str = setting(
        "compute",
        "training's products in projections and MLP: compute, or float8 (GPUs of capability 8.9 "
        "or newer, TPUs from generation 7; a CPU emulates it)",
        choices=("compute", "float8"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text, tokenizer and mixture."""

    # Read by data/, and by curate/ for its raw text.

    # Checked by text/sources.py, which knows what a source can be.
    sources: dict = setting(
        {},
        "{name: {path, weight, field, revision, heldout (files, or a share), max_epochs (times it "
        "is read at most), fraction (part of its documents that is read), score (a field; "
        "documents in its order, '-field' from high to low), "
        "reader (module:function), kind (text, chat or pairs)}} or "
        "'name:weight=path,...'; empty: embedded textbook",
        affects="order",
    )
    tokenizer: str = setting(
        "", "an existing tokenizer.json; empty: train a byte-level BPE on the text", affects="order"
    )
    vocab_size: int = setting(
        1024, "size of the tokenizer that is trained; 0: train.minutes decides", NOT_NEGATIVE
    )
    seq_len: int = setting(128, "tokens in a row, T; 0: train.minutes decides", NOT_NEGATIVE)
    packing: str = setting(
        "best_fit",
        "best_fit keeps documents whole where it can; concat cuts them at row edges",
        choices=("best_fit", "concat"),
    )
    group_by: str = setting(
        "",
        "field, or regular expression on the id: a group is either held out or trained on, never "
        "both",
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
    # Read by config/run_phases.py; data/phases.py checks the names of sources.
    phases: tuple = setting(
        (),
        "[{'until': 0.8, 'weights': {source: weight}}, {'until': 1.0, 'weights': ..., 'ramp': "
        "0.05}]: until and ramp are shares of the run; during ramp, which begins the phase, the "
        "weights change linearly; 'tokens' instead of until: then ramp is in tokens too; a phase "
        "may also have rate ([from, to], factors of train.lr), seq_len, batch and seed (of the "
        "order); in weights '*' is every source that is not named; empty: the sources' weights",
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

    # Read by train/ and tasks/.

    # A finished run may be extended: the plan's fingerprint decides whether a change is allowed.
    steps: int = setting(
        1000,
        "optimizer steps; 0: as many as data.phases have tokens for, or without such phases none "
        "(what --init_from gives is only evaluated)",
        NOT_NEGATIVE,
        affects="order",
    )
    minutes: float = setting(
        0.0,
        "from the command to the report, without the time to prepare the text: the launcher "
        "chooses the size of the model and train.steps (which must be 0) for this machine; 0: "
        "train.steps decides",
        NOT_NEGATIVE,
    )
    size: str = setting(
        "", "with train.minutes: parameters, such as 20m, as --params sets it; empty: chosen"
    )
    chosen: tuple[str, ...] = setting(
        (),
        "set by train.minutes: what was measured and chosen, and why, one line each",
        affects="bookkeeping",
    )
    branch: bool = setting(
        False,
        "go on from a checkpoint of --init_from with its optimizer and its place in the data: the "
        "newest one up to which learning rate and data are the same",
    )
    batch: int = setting(
        64, "rows in a step, over all devices; 0: train.minutes decides", NOT_NEGATIVE
    )
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
        "groups (embedding, head, matrix, vector, own) or path patterns that are trained, e.g. "
        "'stack/*'; empty: all",
    )
    weight_decay: float = setting(
        0.1,
        "decoupled, on matrices and an untied head; a step shrinks them by weight_decay times "
        "decay_lr times the schedule's factor",
        NOT_NEGATIVE,
    )
    decay_lr: float = setting(
        0.0,
        "learning rate that weight_decay is multiplied by, so that a sweep over lr leaves the "
        "decay as it is; 0: lr, times its group's multiplier",
        NOT_NEGATIVE,
    )
    b2: float = setting(0.95, "decay of AdamW's second moment", SHARE)
    eps: float = setting(1e-8, "added to the root of the second moment", NOT_NEGATIVE)
    clip: float = setting(1.0, "largest global gradient norm; 0: none", NOT_NEGATIVE)
    schedule: str = setting(
        "wsd",
        "wsd (warmup, stable, decay), cosine, or phases: each phase's rate",
        choices=("wsd", "cosine", "phases"),
    )
    warmup: int = setting(
        100,
        "steps of linear warmup; 0: none, or a share of the run where train.minutes decides",
        NOT_NEGATIVE,
    )
    decay: float = setting(0.2, "share of the run that decays (wsd)", SHARE)
    z_loss: float = setting(0.0, "coefficient of logsumexp squared", NOT_NEGATIVE)
    spike_sigma: float = setting(
        6.0,
        "skip a step whose loss or gradient norm is this many deviations above its running mean; "
        "0: never",
        NOT_NEGATIVE,
    )
    max_skips: int = setting(
        20, "skipped steps in a row that end the run", POSITIVE, affects="bookkeeping"
    )
    # It changes only the order of sums, so a run may resume with another value.
    deterministic: bool = setting(
        False,
        "bit-equal resume on GPU too, at some cost (CPU and TPU always are)",
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluations and samples while a run trains."""

    # Read by train/evaluation.py.

    every: int = setting(
        200, "steps between evaluations; 0: only at the end", NOT_NEGATIVE, affects="bookkeeping"
    )
    tokens: int = setting(
        200_000, "held-out tokens of each source in an evaluation", POSITIVE, affects="bookkeeping"
    )
    samples: int = setting(
        4, "completions shown after an evaluation; 0: none", NOT_NEGATIVE, affects="bookkeeping"
    )
    # One prompt with commas is more likely than several without.
    prompts: tuple[str, ...] = setting(
        (),
        "their prompts; empty: beginnings of held-out documents",
        affects="bookkeeping",
        one_text=True,
    )
    sample_tokens: int = setting(64, "length of a completion", POSITIVE, affects="bookkeeping")
    answers: int = setting(
        64,
        "held-out questions of dialogues that are answered at the end; 0: none",
        NOT_NEGATIVE,
        affects="bookkeeping",
    )
    textbook: bool = setting(
        False,
        "at the end ask the embedded textbook's held-out questions, whatever the text is",
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a run."""

    # Read by train/loop.py.

    every: int = setting(500, "steps between checkpoints", POSITIVE, affects="bookkeeping")
    keep: int = setting(
        3,
        "newest checkpoints to keep; the start of the decay is kept too",
        POSITIVE,
        affects="bookkeeping",
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Records of a run."""

    # Read by train/loop.py.

    every: int = setting(10, "steps between lines of metrics", POSITIVE, affects="bookkeeping")
    tensorboard: bool = setting(False, "write TensorBoard files too", affects="bookkeeping")
    wandb: str = setting("", "Weights & Biases project; empty: off", affects="bookkeeping")
    profile: str = setting("", "steps to profile, 'first:last'; empty: none", affects="bookkeeping")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work."""

    # Read by parallel/mesh.py.

    # -1 makes a recipe fit machines of any size.
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


STAGES = (
    "train",
    "prepare",
    "synthesize",
    "curate",
    "recall",
    "mixture",
    "forecast",
    "evaluate",
    "reasoning",
)
# {group: the only stage that reads it}. All other groups are training's; any stage may set them.
STAGE_OF = {
    "study": "recall",
    "mixture": "mixture",
    "forecast": "forecast",
    "evaluate": "evaluate",
    "reasoning": "reasoning",
    "synthesize": "synthesize",
    "curate": "curate",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a recipe says, checked."""

    stage: str = setting(
        "train",
        "what to do: train, prepare (tokenize only), synthesize, curate, recall, mixture, "
        "forecast, evaluate or reasoning; the last seven have recipes of their own",
    )
    task: str = setting(
        "lm",
        "what a run learns: lm (next tokens), orpo (preferences), recall or module:Name, with "
        "options: 'mine:Task rate=3'",
    )
    seed: int = setting(
        0, "of the initial parameters, the data order and sampling", affects="chance"
    )
    # Frozen, so that a default can be shared.
    model: ModelConfig = ModelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    study: StudyConfig = StudyConfig()  # noqa: RUF009 (frozen)
    mixture: MixtureConfig = MixtureConfig()  # noqa: RUF009 (frozen)
    forecast: ForecastConfig = ForecastConfig()  # noqa: RUF009 (frozen)
    evaluate: EvaluateConfig = EvaluateConfig()  # noqa: RUF009 (frozen)
    reasoning: ReasoningConfig = ReasoningConfig()  # noqa: RUF009 (frozen)
    synthesize: SynthesizeConfig = SynthesizeConfig()  # noqa: RUF009 (frozen)
    curate: CurateConfig = CurateConfig()  # noqa: RUF009 (frozen)
