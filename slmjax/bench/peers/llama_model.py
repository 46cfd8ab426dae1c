"""transformers' LlamaForCausalLM with AdamW: it trains and scores as our step does, on our batches.

torch and transformers are imported late, because the library does not need them otherwise.
"""

import dataclasses
import os
import platform
import resource
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slmjax import config as configs
from slmjax.bench.peers.llama_weights import llama_config, llama_names, llama_weights
from slmjax.data.rows import text_fields
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.parallel.rules import flatten_tree
from slmjax.train import schedule
from slmjax.train.optimizer import ADAM_B1

FIELDS = tuple(text_fields(1, 1))  # names of the arrays in a batch of text
ATTENTION = {"sdpa": "sdpa", "flex": "flex_attention"}  # transformers' names


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices that only the peer has.

    attention: "sdpa" with a dense mask, or "flex" (FlexAttention, GPU only).
    compile: whether torch.compile is used; None means on a GPU only.
    init: initial weights, "own" for transformers' or "ours" for those of our run.
    """

    attention: str = "sdpa"
    compile: bool | None = None
    init: str = "own"


class Peer:
    """A LlamaForCausalLM with its optimizer and learning rates.

    `step` trains on a global batch, `score` returns the nats of held-out tokens.

    Raises: ValueError if it has another number of parameters than our model.
    """

    def __init__(self, config: configs.Config, arch: Architecture, choices: Choices):
        import torch

        self.config, self.arch, self.choices = config, arch, choices
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.type == "cuda"
        self.compiled = on_gpu if choices.compile is None else choices.compile
        self.compute = _compute_type(config.precision.compute, on_gpu)
        torch.set_float32_matmul_precision("highest")  # no TF32 for products in float32
        torch.manual_seed(config.seed)
        self.model = _initial_model(arch, config.data.seq_len, config.seed, choices)
        self.model.to(self.device).train()
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        expected = sizes.parameters(arch).total
        if self.parameters != expected:
            raise ValueError(f"the peer has {self.parameters} parameters, our model {expected}")
        self.optimizer = _adamw(self.model, arch, config.train)
        factors = schedule.factor(config.train, np.arange(config.train.steps))
        self.rates = config.train.lr * np.asarray(factors, np.float64)
        self._train_nats, self._score_nats = _train_nats, _score_nats
        if self.compiled:
            self._train_nats = torch.compile(_train_nats, dynamic=False)
            self._score_nats = torch.compile(_score_nats, dynamic=False)

    def step(self, batch: Mapping[str, np.ndarray], number: int) -> Any:
        """Take one optimizer step, the 0-based `number`, on a global batch.

        Returns: a tensor on the device, loss and gradient norm before clipping; not waited for.
        """
        import torch

        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        arrays = self._put(batch)
        # Each microbatch is divided by the weight of the whole batch, so that their sum is exact.
        weight = arrays["weights"].sum()
        total = torch.zeros((), device=self.device)
        for first in range(train.microbatches):
            part = {name: value[first :: train.microbatches] for name, value in arrays.items()}
            with self._autocast():
                mask = self._block_mask(part["segments"])
                nats = self._train_nats(self.model, part, mask).sum()
            (nats / weight).backward()
            total += nats.detach()
        norm = self._clip(train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([total / weight, norm])

    def score(self, batch: Mapping[str, np.ndarray]) -> jax.Array:
        """Return the nats of each token [B,T], zero on padding."""
        import torch

        arrays = self._put(batch)
        with torch.no_grad(), self._autocast():
            mask = self._block_mask(arrays["segments"])
            nats = self._score_nats(self.model, arrays, mask)
        return jax.numpy.asarray(nats.cpu().numpy())

    def facts(self) -> dict[str, Any]:
        """Return the peer's own choices, as they came out on this device."""
        return {
            "attention": self.choices.attention,
            "compile": self.compiled,
            "init": self.choices.init,
            "compute": self.compute,
        }

    def environment(self) -> dict[str, Any]:
        """Return the versions of the software and the device."""
        import torch
        import transformers

        if self.device.type == "cuda":
            device = torch.cuda.get_device_name()
        else:
            device = platform.processor() or "cpu"
        return {
            "device": device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "cpu cores": os.cpu_count(),
            "system": platform.platform(),
        }

    def peak_memory(self) -> int:
        """Return the most bytes that tensors took on the GPU; without a GPU, this process."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Copy a batch to the device."""
        import torch

        tensors = {name: torch.tensor(batch[name]) for name in FIELDS}
        if self.device.type != "cuda":
            return tensors
        # From pinned memory the copy runs while the device still computes.
        for name, value in tensors.items():
            tensors[name] = value.pin_memory().to(self.device, non_blocking=True)
        return tensors

    def _block_mask(self, segments: Any) -> Any:
        """Return FlexAttention's mask; None for sdpa, whose mask the compiled function makes."""
        if self.choices.attention != "flex":
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(b, h, q, k):
            return (q >= k) & (segments[b, q] == segments[b, k])

        rows, length = segments.shape
        return create_block_mask(sees, rows, None, length, length, device=segments.device)

    def _clip(self, largest: float) -> Any:
        """Clip gradients to a global norm (0: not at all); returns the norm before that."""
        import torch

        # In the optimizer's order: the order decides how the norm is rounded.
        groups = self.optimizer.param_groups
        parameters = [weight for group in groups for weight in group["params"]]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in parameters])
        if largest:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.compute == "bfloat16")


def _compute_type(asked: str, on_gpu: bool) -> str:
    """Return the type of products: as asked, else bfloat16 where the hardware has it."""
    import torch

    if asked != "auto":
        return asked
    # Capability 8.0 is Ampere, the first with bfloat16 in its matrix units.
    has_bfloat16 = on_gpu and torch.cuda.get_device_capability() >= (8, 0)
    return "bfloat16" if has_bfloat16 else "float32"


def _initial_model(arch: Architecture, seq_len: int, seed: int, choices: Choices) -> Any:
    """Return a LlamaForCausalLM on the CPU with its own initial weights or with ours."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config(arch, seq_len, ATTENTION[choices.attention]))
    if choices.init == "ours":
        params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(seed))
        weights = llama_weights(arch, params)
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return model


def _adamw(model: Any, arch: Architecture, train: configs.TrainConfig) -> Any:
    """Return the optimizer; the weights that decay are those that our declarations name."""
    import torch

    named = dict(model.named_parameters())
    declared = flatten_tree(lm.declare(arch))
    decaying, others = [], []
    for name, path, _ in llama_names(arch):
        group = decaying if declared[path].decays else others
        group.append(named[name])
    groups = [
        {"params": decaying, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (ADAM_B1, train.b2)
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, eps=train.eps, fused=True)


def _train_nats(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    """Return the nats of each token [B,T] in training.

    Logits are computed in the compute type and then cast to float32, as in transformers' own loss.
    """
    return _weighted_nats(model.lm_head(_hidden(model, batch, mask)), batch)


def _score_nats(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    """Return the nats of each held-out token [B,T], without rounding logits to bfloat16."""
    import torch

    hidden = _hidden(model, batch, mask)
    with torch.autocast(hidden.device.type, enabled=False):
        return _weighted_nats(model.lm_head(hidden.float()), batch)


def _hidden(model: Any, batch: dict[str, Any], mask: Any) -> Any:
    """Return the last hidden states [B,T,D]; without a mask, make a dense one [B,1,T,T]."""
    if mask is None:
        segments = batch["segments"]
        mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    output = model.model(
        input_ids=batch["tokens"],
        attention_mask=mask,
        position_ids=batch["positions"],
        use_cache=False,
    )
    return output.last_hidden_state


def _weighted_nats(logits: Any, batch: dict[str, Any]) -> Any:
    from torch.nn.functional import cross_entropy

    # cross_entropy takes [B*T, V] and int64 targets [B*T].
    flat_logits = logits.float().flatten(0, 1)
    flat_targets = batch["targets"].long().flatten()
    nats = cross_entropy(flat_logits, flat_targets, reduction="none")
    return nats.view_as(batch["weights"]) * batch["weights"]
