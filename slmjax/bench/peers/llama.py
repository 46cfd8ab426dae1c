"""Train transformers' LlamaForCausalLM on the batches of one of our runs: the peer of our training.

python -m slmjax.bench.peers.llama --config=configs/30m.py --workdir=runs/30m-llama

Equal to a run of `slmjax.launch` with the same config: the global batches (plan, seed, prepared
text), the number of parameters, AdamW and which weights decay, clipping, the schedule,
document-masked attention, positions that restart with each document, the loss, and the held-out
documents.

Different: PyTorch's own numerics (automatic mixed precision: bfloat16 products, the residual
stream in float32), and transformers' own initial weights unless --init=ours. The peer never skips a
step. It scores held-out text with the head's product in float32.

The work directory holds config.json, metrics.jsonl and heldout.npz in our formats, so that
`python -m slmjax.compare OURS PEER` reads it.
"""

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from slmjax import cli
from slmjax import config as configs
from slmjax.bench.peers.llama_model import Choices, Peer
from slmjax.bench.peers.llama_training import train_llama
from slmjax.data.prepare_stage import batch_plan, facts, prepared_text
from slmjax.errors import UserError
from slmjax.evals.perplexity import DocumentLosses
from slmjax.models import sizes
from slmjax.models.architecture import vocab_rows
from slmjax.models.pattern import from_config
from slmjax.record.metrics import MetricsWriter
from slmjax.train import evaluation

PROGRAM = "python -m slmjax.bench.peers.llama"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def run(
    config: configs.Config, workdir: str, choices: Choices, *, out: str = "", command: str = ""
) -> dict[str, Any]:
    """Train and evaluate the peer, and write its results as JSON.

    Args:
      choices: what only the peer can choose, such as its kind of attention.
      out: file of the results; "" means peer.json in the work directory.
      command: the command line, for the record.
    Returns: the results: bits per byte of held-out text, speed, the loss curve, memory and what
      ran.
    Raises: UserError where torch or transformers is missing, the config asks for something that
      the peer lacks, or the work directory is in use.
    """
    check_peer(config.model, config.train, config.precision, choices)
    # JAX only reads data here. On a GPU it would take most of the memory.
    jax.config.update("jax_platforms", "cpu")
    folder = _unused_folder(workdir)
    prepared = prepared_text(config.data, workdir)
    tokenizer = prepared.tokenizer
    arch = from_config(config.model, vocab_rows(config.model.vocab_size, tokenizer.vocab_size))
    plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
    peer = Peer(config, arch, choices)

    folder.mkdir(parents=True, exist_ok=True)
    # Our own config.json with one more group, which `compare` lists among the differences.
    peer_facts = {"model": "transformers LlamaForCausalLM", **peer.facts()}
    saved = configs.to_dict(config) | {"peer": peer_facts}
    config_text = json.dumps(saved, indent=1, sort_keys=True)
    (folder / "config.json").write_text(config_text)
    tokenizer.save(folder / "tokenizer.json")
    # The same events as in our own runs.
    with MetricsWriter(folder) as writer:
        writer.event(
            "start",
            0,
            command=command,
            environment=peer.environment(),
            parameters=sizes.parameters(arch)._asdict(),
            choices=[str(choices)],
        )
        sources = facts(prepared, plan.epochs())
        writer.event("data", 0, sources=sources, folder=str(prepared.folder))
        measured, losses = train_llama(peer, prepared, plan, writer, folder)
        writer.event("finish", config.train.steps)

    result = {
        "bits_per_byte": _bits_per_byte(losses),
        **measured,
        "parameters": peer.parameters,
        "peak_memory_bytes": peer.peak_memory(),
        **peer.facts(),
        **peer.environment(),
        "command": command,
    }
    _write_json(result, Path(out) if out else folder / "peer.json")
    return result


def check_peer(
    model: configs.ModelConfig,
    train: configs.TrainConfig,
    precision: configs.PrecisionConfig,
    choices: Choices,
) -> None:
    """Check that the peer is installed and would train as our run does.

    Raises: UserError if not.
    """
    libraries = ("torch", "transformers")
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the peer needs {' and '.join(missing)}, not installed here: pip install 'slmjax[hf]'."
        )
    import torch

    # With such a setting the peer would silently train another model than our run.
    if train.optimizer != "adamw":
        raise UserError(f"config.train.optimizer is '{train.optimizer}'; the peer has adamw only.")
    if train.z_loss:
        raise UserError(
            f"config.train.z_loss is {train.z_loss}; the peer has no z-loss, so compare with 0."
        )
    if model.multipliers:
        raise UserError(
            "config.model.multipliers is set; the peer has one initial scale, rate and decay "
            "for all, so leave it empty."
        )
    if precision.optimizer != "float32":
        raise UserError(
            f"config.precision.optimizer is '{precision.optimizer}'; the peer keeps float32 there."
        )
    if choices.attention == "flex" and not torch.cuda.is_available():
        raise UserError(
            "--attention=flex needs a GPU (on a CPU it has no gradient); take --attention=sdpa."
        )


def _run(argv: list[str]) -> int:
    # The peer's own flags first. The launcher's parser reads the others.
    peer_options, launcher_words = _parser().parse_known_args(argv)
    launcher_options, assignments = cli.read_options(launcher_words)
    config = cli.make_config(launcher_options, assignments)
    # --config may be "recipe.py:argument".
    recipe = launcher_options["config"].partition(":")[0]
    workdir = launcher_options.get("workdir") or f"runs/{Path(recipe).stem}-llama"
    # Without --compile the device decides.
    compiles = None if peer_options.compile is None else bool(peer_options.compile)
    result = run(
        config,
        workdir,
        Choices(peer_options.attention, compiles, peer_options.init),
        out=peer_options.out,
        command=cli.shell_command([*PROGRAM.split(), *argv]),
    )
    # The loss curve is too long for a terminal.
    del result["loss"]
    print(json.dumps(result, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__.partition("\n")[0],
        # An abbreviation could take one of the launcher's options.
        allow_abbrev=False,
        epilog="--config, --workdir, --params and --config.FIELD=VALUE are those of slmjax.launch.",
    )
    parser.add_argument(
        "--attention",
        choices=("sdpa", "flex"),
        default="sdpa",
        help="sdpa (a mask), or flex (GPU; skips masked blocks)",
    )
    parser.add_argument(
        "--compile", type=int, choices=(0, 1), help="torch.compile (default: 1 on a GPU, else 0)"
    )
    parser.add_argument(
        "--init",
        choices=("own", "ours"),
        default="own",
        help="initial weights: transformers' or those of our run",
    )
    parser.add_argument(
        "--out", default="", help="JSON with the results (default: peer.json in the work directory)"
    )
    return parser


def _unused_folder(workdir: str) -> Path:
    """Return the work directory. Raises: UserError if there is a run in it."""
    folder = Path(workdir)
    if (folder / "metrics.jsonl").exists():
        raise UserError(
            f"--workdir={workdir} holds a run already, and the peer does not resume; "
            "give another one."
        )
    return folder


def _write_json(result: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))


def _bits_per_byte(losses: Mapping[str, DocumentLosses]) -> dict[str, float | None]:
    """Return bits per byte of held-out text: "total" first, then each source."""
    # Metrics are "eval/bits_per_byte" and "eval/SOURCE/bits_per_byte".
    by_name = {}
    for metric, value in evaluation.metrics(losses).items():
        name = metric.removeprefix("eval/").removesuffix("/bits_per_byte")
        by_name[name] = value
    total = by_name.pop("bits_per_byte", None)
    return {"total": total, **by_name}


if __name__ == "__main__":
    cli.script(main)
