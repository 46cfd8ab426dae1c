"""transformers' LlamaForCausalLM with AdamW: it trains and scores as our step does, on our batches.

torch and transformers are imported late, because they are optional.
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
from slmjax.bench.peers.llama_loss import Tensor, Tensors, score_nats, train_nats
from slmjax.bench.peers.llama_weights import llama_config, llama_names, llama_weights
from slmjax.data.rows import text_fields
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.parallel.rules import flatten_tree
from slmjax.train import schedule
from slmjax.train.optimizer import ADAM_B1

FIELDS = tuple(text_fields(1, 1))  # names of the arrays in a batch of text
ATTENTION = {"sdpa": "sdpa", "flex": "flex_attention"}  # transformers' names

Batch = Mapping[str, np.ndarray]  # a batch of text on the host


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

    Raises: ValueError if it does not have as many parameters as our model.
    """

    def __init__(self, config: configs.Config, arch: Architecture, choices: Choices):
        import torch

        self.config = config
        self.arch = arch
        self.choices = choices
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.compute = _compute_type(config.precision.compute, self.on_gpu)
        torch.set_float32_matmul_precision("highest")  # no TF32 for products in float32
        torch.manual_seed(config.seed)
        self.model = _initial_model(arch, config.data.seq_len, config.seed, choices)
        self.model.to(self.device).train()
        self.parameters = _count_parameters(self.model, arch)
        self.optimizer = _adamw(self.model, arch, config.train)
        self.rates = _learning_rates(config.train)
        self.compiled = self.on_gpu if choices.compile is None else choices.compile
        self._train_nats = train_nats
        self._score_nats = score_nats
        if self.compiled:
            # All batches have one shape, and a program for fixed shapes is faster.
            self._train_nats = torch.compile(train_nats, dynamic=False)
            self._score_nats = torch.compile(score_nats, dynamic=False)

    def step(self, batch: Batch, number: int) -> Tensor:
        """Take one optimizer step on a global batch.

        Args:
          number: of the step, counted from 0.
        Returns: [loss, gradient norm before clipping], on the device and not waited for.
        """
        import torch

        train = self.config.train
        # Both groups have the same rate; they differ in their decay.
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        arrays = self._put(batch)
        # The nats of a microbatch are divided by the weight of the whole batch: the sum over
        # microbatches is then the batch's mean, however padding is spread.
        weight = arrays["weights"].sum()
        total_nats = torch.zeros((), device=self.device)
        for first in range(train.microbatches):
            # Interleaved rows, as in our step.
            rows = slice(first, None, train.microbatches)
            microbatch = {name: value[rows] for name, value in arrays.items()}
            with self._autocast():
                mask = self._block_mask(microbatch["segments"])
                token_nats = self._train_nats(self.model, microbatch, mask)
                nats = token_nats.sum()
            (nats / weight).backward()
            total_nats += nats.detach()
        norm = self._clip(train.clip)
        self.optimizer.step()
        # None instead of zeros: the next backward pass writes gradients instead of adding them.
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([total_nats / weight, norm])

    def score(self, batch: Batch) -> jax.Array:
        """Return the nats of each token [B,T], zero on padding."""
        import torch

        arrays = self._put(batch)
        with torch.no_grad(), self._autocast():
            mask = self._block_mask(arrays["segments"])
            nats = self._score_nats(self.model, arrays, mask)
        # A JAX array, as evals.perplexity gets from our own scorer.
        return jax.numpy.asarray(nats.cpu().numpy())

    def facts(self) -> dict[str, Any]:
        """Return the peer's choices, with what this device decided."""
        return {
            "attention": self.choices.attention,
            "compile": self.compiled,
            "init": self.choices.init,
            "compute": self.compute,
        }

    def environment(self) -> dict[str, Any]:
        """Return the device, the system, and the versions of the software."""
        import torch
        import transformers

        device = platform.processor() or "cpu"
        if self.on_gpu:
            device = torch.cuda.get_device_name()
        return {
            "device": device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "cpu cores": os.cpu_count(),
            "system": platform.platform(),
        }

    def peak_memory(self) -> int:
        """Return the peak in bytes: of tensors on the GPU, or of this process without a GPU."""
        import torch

        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_maxrss * 1024  # Linux counts in KiB

    def _put(self, batch: Batch) -> Tensors:
        """Copy a batch to the device."""
        import torch

        tensors = {}
        for name in FIELDS:
            tensor = torch.tensor(batch[name])
            if self.on_gpu:
                # From pinned memory the copy runs while the device still computes.
                tensor = tensor.pin_memory().to(self.device, non_blocking=True)
            tensors[name] = tensor
        return tensors

    def _block_mask(self, segments: Tensor) -> Any:
        """Return FlexAttention's mask; None for sdpa, whose dense mask llama_loss makes."""
        if self.choices.attention != "flex":
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(b, h, q, k):
            same_document = segments[b, q] == segments[b, k]
            return (q >= k) & same_document

        batch, length = segments.shape
        # None in the place of heads: all heads have the same mask.
        return create_block_mask(sees, batch, None, length, length, device=segments.device)

    def _clip(self, max_norm: float) -> Tensor:
        """Clip gradients to a global norm (0: no clipping); return the norm before clipping."""
        import torch

        # In the optimizer's order: the order decides how the norm is rounded.
        weights = []
        for group in self.optimizer.param_groups:
            weights += group["params"]
        gradients = [weight.grad for weight in weights]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        return norm

    def _autocast(self) -> Any:
        import torch

        mixed = self.compute == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)


def _compute_type(setting: str, on_gpu: bool) -> str:
    """Return the type of products: the setting; for "auto", bfloat16 where the hardware has it."""
    import torch

    if setting != "auto":
        return setting
    # Capability 8.0 is Ampere, the first with bfloat16 in its matrix units.
    if on_gpu and torch.cuda.get_device_capability() >= (8, 0):
        return "bfloat16"
    return "float32"


def _initial_model(arch: Architecture, seq_len: int, seed: int, choices: Choices) -> Any:
    """Return a LlamaForCausalLM on the CPU with its own initial weights or with ours."""
    import torch
    from transformers import LlamaForCausalLM

    attention = ATTENTION[choices.attention]
    model = LlamaForCausalLM(llama_config(arch, seq_len, attention))
    if choices.init == "ours":
        # Compiled as a whole, as in our run: compiled in parts, numbers could be rounded otherwise.
        init = jax.jit(lm.init, static_argnums=0)
        params = init(arch, jax.random.key(seed))
        state = {}
        for name, weight in llama_weights(arch, params).items():
            state[name] = torch.tensor(weight)
        model.load_state_dict(state)
    return model


def _count_parameters(model: Any, arch: Architecture) -> int:
    """Return the number of parameters. Raises: ValueError if our model has another number."""
    # `parameters` yields a tied head once, and our count has it once too.
    count = sum(weight.numel() for weight in model.parameters())
    expected = sizes.parameters(arch).total
    if count != expected:
        raise ValueError(f"the peer has {count} parameters, our model {expected}")
    return count


def _adamw(model: Any, arch: Architecture, train: configs.TrainConfig) -> Any:
    """Return AdamW; the weights that decay are those that decay in our own model."""
    import torch

    weights = dict(model.named_parameters())
    declared = flatten_tree(lm.declare(arch))
    decaying = []
    others = []
    for name, path, _ in llama_names(arch):
        group = decaying if declared[path].decays else others
        group.append(weights[name])
    # PyTorch multiplies the decay by the learning rate; ours may have a rate of its own.
    decay = train.weight_decay * ((train.decay_lr or train.lr) / train.lr)
    return torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=train.lr,
        betas=(ADAM_B1, train.b2),
        eps=train.eps,
        fused=True,
    )


def _learning_rates(train: configs.TrainConfig) -> np.ndarray:
    """Return the learning rate of every step, float64 [steps]."""
    steps = np.arange(train.steps)
    # Computed by our own schedule, so that both runs have the same.
    factors = np.asarray(schedule.factor(train, steps), np.float64)
    return train.lr * factors
