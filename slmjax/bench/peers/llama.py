"""The peer that our training is measured against: transformers' LlamaForCausalLM on the same batches, optimizer and schedule.

python -m slmjax.bench.peers.llama --config=configs/30m.py --workdir=runs/30m-llama

Equal to a run of `slmjax.launch` with the same config: the global batches (plan, seed, prepared text), the number of parameters, AdamW and
what decays, clipping, the schedule, document-masked attention, positions that restart with each document, the loss, and the held-out
documents. Different: PyTorch's own numerics (automatic mixed precision: bfloat16 products, the residual stream in float32), transformers'
own initial weights unless --init=ours, and no step is ever skipped. Held-out text is scored with the head's product in float32.
The work directory holds config.json, metrics.jsonl and heldout.npz as ours do, so that `python -m slmjax.compare OURS PEER` reads it.
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax import cli
from slmjax import config as configs
from slmjax.bench.peers.llama_weights import llama_config, llama_names, llama_weights
from slmjax.data.loader import BatchPlan, heldout_batches, local_batches
from slmjax.data.prepare import Prepared
from slmjax.data.prepare_stage import batch_plan, facts, prepared_text
from slmjax.data.rows import text_fields
from slmjax.errors import UserError
from slmjax.evals.perplexity import DocumentLosses, document_losses
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture, vocab_rows
from slmjax.models.pattern import from_config
from slmjax.parallel.rules import flatten_tree
from slmjax.record.metrics import MetricsWriter
from slmjax.train import evaluation, schedule
from slmjax.train.optimizer import ADAM_B1

FIELDS = tuple(text_fields(1, 1))  # of a batch of text
SETTLED = 20  # steps before the first speed that counts: compilation and the allocator's growth


@dataclasses.dataclass(frozen=True)
class Choices:
    """What only the peer has to choose; compile None: where there is a GPU."""

    attention: str = "sdpa"
    compile: bool | None = None
    init: str = "own"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m slmjax.bench.peers.llama",
        description=__doc__.partition("\n")[0],
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
    own, rest = parser.parse_known_args(argv)
    options, assignments = cli.read_options(rest)
    config = cli.make_config(options, assignments)
    workdir = (
        options.get("workdir") or f"runs/{Path(options['config'].partition(':')[0]).stem}-llama"
    )
    choices = Choices(own.attention, None if own.compile is None else bool(own.compile), own.init)
    result = run(
        config,
        workdir,
        choices,
        out=own.out,
        command=cli.shown(["python", "-m", "slmjax.bench.peers.llama", *argv]),
    )
    print(json.dumps({name: value for name, value in result.items() if name != "loss"}, indent=1))
    return 0


def run(
    config: configs.Config, workdir: str, choices: Choices, *, out: str = "", command: str = ""
) -> dict[str, Any]:
    """Train and evaluate the peer; returns what is written to `out`.

    Raises: UserError where torch or transformers is missing, the config asks for what the peer has not, or the work directory is in use.
    """
    check_peer(config, choices)
    jax.config.update(
        "jax_platforms", "cpu"
    )  # jax only reads data here; on a GPU it would take most of the memory
    folder = Path(workdir)
    if (folder / "metrics.jsonl").exists():
        raise UserError(
            f"--workdir={workdir} holds a run already, and the peer does not resume; give another one."
        )
    prepared = prepared_text(config.data, workdir)
    arch = from_config(
        config.model, vocab_rows(config.model.vocab_size, prepared.tokenizer.vocab_size)
    )
    plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
    peer = Peer(config, arch, choices)
    folder.mkdir(parents=True, exist_ok=True)
    saved = {
        **configs.to_dict(config),
        "peer": {"model": "transformers LlamaForCausalLM", **peer.facts()},
    }
    (folder / "config.json").write_text(json.dumps(saved, indent=1, sort_keys=True))
    prepared.tokenizer.save(folder / "tokenizer.json")
    with MetricsWriter(folder) as writer:
        counts = sizes.parameters(arch)._asdict()
        writer.event(
            "start",
            0,
            command=command,
            environment=peer.environment(),
            parameters=counts,
            choices=[str(choices)],
        )
        writer.event("data", 0, sources=facts(prepared, plan.epochs()), folder=str(prepared.folder))
        measured, losses = _train(peer, prepared, plan, writer, folder)
        writer.event("finish", config.train.steps)
    found = {
        name.removeprefix("eval/").removesuffix("/bits_per_byte"): value
        for name, value in evaluation.metrics(losses).items()
    }
    result = {
        "bits_per_byte": {"total": found.pop("bits_per_byte", None), **found},
        **measured,
        "parameters": peer.parameters,
        "peak_memory_bytes": peer.peak_memory(),
        **peer.facts(),
        **peer.environment(),
        "command": command,
    }
    target = Path(out) if out else folder / "peer.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1))
    return result


def check_peer(config: configs.Config, choices: Choices) -> None:
    """Raises: UserError for what the peer cannot do as our run would."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the peer needs {' and '.join(missing)}, not installed here: pip install 'slmjax[hf]'."
        )
    import torch

    if config.train.optimizer != "adamw":
        raise UserError(
            f"config.train.optimizer is '{config.train.optimizer}'; the peer has adamw only."
        )
    if config.train.z_loss:
        raise UserError(
            f"config.train.z_loss is {config.train.z_loss}; the peer has no z-loss, so compare with 0."
        )
    if config.model.multipliers:
        raise UserError(
            "config.model.multipliers is set; the peer has one initial scale, rate and decay for all, so leave it empty."
        )
    if config.precision.optimizer != "float32":
        raise UserError(
            f"config.precision.optimizer is '{config.precision.optimizer}'; the peer keeps float32 there."
        )
    if choices.attention == "flex" and not torch.cuda.is_available():
        raise UserError(
            "--attention=flex needs a GPU (on a CPU it has no gradient); take --attention=sdpa."
        )


class Peer:
    """A LlamaForCausalLM with its optimizer: `step` trains on a global batch, `score` gives the nats of held-out tokens."""

    def __init__(self, config: configs.Config, arch: Architecture, choices: Choices):
        import torch
        from transformers import LlamaForCausalLM

        self.config, self.arch, self.choices = config, arch, choices
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.compiled = self.device.type == "cuda" if choices.compile is None else choices.compile
        fast = self.device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
        asked = config.precision.compute
        self.compute = asked if asked != "auto" else "bfloat16" if fast else "float32"
        torch.set_float32_matmul_precision("highest")  # no TF32: what is float32 stays float32
        torch.manual_seed(config.seed)
        attention = {"sdpa": "sdpa", "flex": "flex_attention"}[choices.attention]
        self.model = LlamaForCausalLM(llama_config(arch, config.data.seq_len, attention))
        if choices.init == "ours":
            weights = llama_weights(
                arch, jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(config.seed))
            )
            self.model.load_state_dict(
                {name: torch.tensor(value) for name, value in weights.items()}
            )
        self.model.to(self.device).train()
        named = dict(self.model.named_parameters())
        self.parameters = sum(p.numel() for p in named.values())
        if self.parameters != sizes.parameters(arch).total:
            raise ValueError(
                f"the peer has {self.parameters} parameters, our model {sizes.parameters(arch).total}"
            )
        t = config.train
        declared = flatten_tree(lm.declare(arch))
        decays = {name: declared[path].decays for name, path, _ in llama_names(arch)}
        groups = [
            {
                "params": [named[name] for name, does in decays.items() if does],
                "weight_decay": t.weight_decay,
            },
            {
                "params": [named[name] for name, does in decays.items() if not does],
                "weight_decay": 0.0,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=t.lr, betas=(ADAM_B1, t.b2), eps=t.eps, fused=True
        )
        self.rates = t.lr * np.asarray(schedule.factor(t, np.arange(t.steps)), np.float64)
        compile = (lambda f: torch.compile(f, dynamic=False)) if self.compiled else (lambda f: f)
        self._train_nats, self._score_nats = compile(_train_nats), compile(_score_nats)

    def step(self, batch: Mapping[str, np.ndarray], number: int) -> Any:
        """One optimizer step; returns (loss, gradient norm before clipping) as a tensor on the device, not waited for."""
        import torch

        t = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        placed = self._put(batch)
        weight, total = placed["weights"].sum(), torch.zeros((), device=self.device)
        for part in range(t.microbatches):
            piece = {name: value[part :: t.microbatches] for name, value in placed.items()}
            with self._autocast():
                nats = self._train_nats(self.model, piece, self._mask(piece["segments"])).sum()
            (nats / weight).backward()
            total += nats.detach()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if t.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, t.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([total / weight, norm])

    def score(self, batch: Mapping[str, np.ndarray]) -> jax.Array:
        """Nats of each token [B,T], zero on padding."""
        import torch

        placed = self._put(batch)
        with torch.no_grad(), self._autocast():
            return jax.numpy.asarray(
                self._score_nats(self.model, placed, self._mask(placed["segments"])).cpu().numpy()
            )

    def facts(self) -> dict[str, Any]:
        """The peer's own choices."""
        return {
            "attention": self.choices.attention,
            "compile": self.compiled,
            "init": self.choices.init,
            "compute": self.compute,
        }

    def environment(self) -> dict[str, Any]:
        """Versions and device."""
        import torch
        import transformers

        name = (
            torch.cuda.get_device_name()
            if self.device.type == "cuda"
            else platform.processor() or "cpu"
        )
        return {
            "device": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "cpu cores": os.cpu_count(),
            "system": platform.platform(),
        }

    def peak_memory(self) -> int:
        """Most bytes that tensors took on the GPU, or of this process."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import torch

        tensors = {name: torch.tensor(batch[name]) for name in FIELDS}
        if self.device.type == "cuda":
            return {
                name: value.pin_memory().to(self.device, non_blocking=True)
                for name, value in tensors.items()
            }
        return tensors

    def _mask(self, segments: Any) -> Any:
        """None where the mask is made from the segments inside the compiled function."""
        if self.choices.attention != "flex":
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        def same(b, h, q, k):
            return (q >= k) & (segments[b, q] == segments[b, k])

        rows, length = segments.shape
        return create_block_mask(same, rows, None, length, length, device=segments.device)

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.compute == "bfloat16")


def _train_nats(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    """Nats of each token in training: logits in the compute type, then float32, as transformers' own loss has it."""
    return _nats(model.lm_head(_hidden(model, batch, mask)), batch)


def _score_nats(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    """Nats of each held-out token, without rounding logits to bfloat16."""
    import torch

    hidden = _hidden(model, batch, mask)
    with torch.autocast(hidden.device.type, enabled=False):
        return _nats(model.lm_head(hidden.float()), batch)


def _hidden(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    if mask is None:
        segments = batch["segments"]
        mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    return model.model(
        input_ids=batch["tokens"],
        attention_mask=mask,
        position_ids=batch["positions"],
        use_cache=False,
    ).last_hidden_state


def _nats(logits: Any, batch: dict[str, Any]) -> Any:
    from torch.nn.functional import cross_entropy

    nats = cross_entropy(
        logits.float().flatten(0, 1), batch["targets"].long().flatten(), reduction="none"
    )
    return nats.view_as(batch["weights"]) * batch["weights"]


def _train(
    peer: Peer, prepared: Prepared, plan: BatchPlan, writer: MetricsWriter, folder: Path
) -> tuple[dict[str, Any], dict[str, DocumentLosses]]:
    """The loop: losses are read one step late, so that the device always has a step to do."""
    c, curve, speeds, losses = peer.config, [], [], {}
    steps, tokens = c.train.steps, c.train.batch * c.data.seq_len
    flops = sizes.train_flops_per_token(peer.arch, c.data.seq_len)
    window, pending, began = [], None, time.monotonic()
    since = began
    with local_batches(
        plan, start_step=0, stop_step=steps, local_rows=range(c.train.batch), workers=c.data.workers
    ) as batches:
        for number in range(steps):
            launched = peer.step(next(batches), number)
            if pending is not None:
                window.append(pending.tolist())
            pending, done = launched, number + 1
            evaluates = done == steps or (c.eval.every and done % c.eval.every == 0)
            if done % c.log.every == 0 or evaluates:
                window.append(pending.tolist())
                pending, now = None, time.monotonic()
                speed, loss = (
                    len(window) * tokens / (now - since),
                    float(np.mean([loss for loss, _ in window])),
                )
                curve.append((done, loss))
                speeds += [speed] if done - len(window) >= min(SETTLED, steps // 2) else []
                axes = {"train/tokens": done * tokens, "train/flops": done * tokens * flops}
                row = {
                    "train/loss": loss,
                    "train/grad_norm": window[-1][1],
                    "train/learning_rate": float(peer.rates[number]),
                    "perf/tokens_per_second": speed,
                    "perf/peak_memory_bytes": peer.peak_memory(),
                }
                writer.write(done, row | axes)
                if done % (10 * c.log.every) == 0 or evaluates:
                    print(
                        f"step {done}/{steps}  loss {loss:.4f}  {speed:,.0f} tokens/s", flush=True
                    )
                if evaluates:
                    losses = _evaluate(peer, prepared)
                    metrics = evaluation.metrics(losses)
                    writer.write(done, metrics | axes)
                    _save(losses, prepared, folder / "heldout.npz")
                    print(
                        f"step {done}: held-out bits per byte {metrics.get('eval/bits_per_byte', float('nan')):.4f}",
                        flush=True,
                    )
                window, since = [], time.monotonic()
            if number == 0:
                gc.freeze()
    measured = {
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "seconds": time.monotonic() - began,
        "steps": steps,
        "tokens": steps * tokens,
        "loss": curve,
    }
    return measured, losses


def _evaluate(peer: Peer, prepared: Prepared) -> dict[str, DocumentLosses]:
    """The documents and batches of train.evaluation.Evaluator."""
    c, out = peer.config, {}
    for name, shards in prepared.heldout.items():
        if len(shards):
            batches = heldout_batches(
                shards,
                seq_len=c.data.seq_len,
                batch=c.train.batch // c.train.microbatches,
                max_tokens=c.eval.tokens,
            )
            out[name] = document_losses(peer.score, batches, shards.bytes)
    return out


def _save(losses: Mapping[str, DocumentLosses], prepared: Prepared, path: Path) -> None:
    """As evaluation.Evaluator.save."""
    arrays = {}
    for name, found in losses.items():
        arrays |= {
            f"{name}/keys": np.asarray(prepared.heldout[name].keys)[found.document],
            f"{name}/nats": found.nats,
            f"{name}/bytes": found.bytes,
            f"{name}/tokens": found.tokens,
        }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    cli.script(main)
