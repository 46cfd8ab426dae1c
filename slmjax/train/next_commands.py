"""The commands that a finished run proposes: generate, change and compare, train on other text."""

import os
import shlex
from collections.abc import Sequence

from slmjax import config as configs
from slmjax.infer.dialogue import trained_on_dialogues
from slmjax.models.architecture import Architecture
from slmjax.tasks.task import Task
from slmjax.train.evaluation import Samples


def next_commands(
    config: configs.Config,
    arch: Architecture,
    task: Task,
    *,
    workdir: str | os.PathLike,
    command: str,
) -> list[str]:
    """Return lines with commands that can be pasted into a shell.

    The user's own text is proposed only to a run on the embedded textbook.

    Args:
      command: the launcher's command that made the run.
    """
    second_workdir = f"{workdir}-2"
    words = without(shlex.split(command), "--workdir")
    generate = ["python", "-m", "slmjax.generate", f"--checkpoint={workdir}"]
    # SeqIO's tasks are sources of text. Generation reads none, so they need no trust.
    trusted = [name for name in configs.named_code(config) if not name.startswith("seqio://")]
    generate += [f"--trust={name}" for name in trusted]
    generate += [f"--prompt={first_prompt(task)}"]
    change = changed_option(config, arch)
    if any(word.startswith("--init_from") for word in words):
        # The model is the parent's, so that its options cannot be changed.
        change = halved_rate(config)
    train_again = [*words, f"--workdir={second_workdir}", change]
    compare = ["python", "-m", "slmjax.compare", str(workdir), second_workdir]
    use_model = f"  generate:            {shlex.join(generate)}"
    if trained_on_dialogues(config):
        chat = ["python", "-m", "slmjax.chat", f"--checkpoint={workdir}"]
        chat += [f"--trust={name}" for name in trusted]
        use_model = f"  chat:                {shlex.join(chat)}"
    lines = ["Next:", use_model]
    # A branch keeps the config of its parent, and a run without steps has no rate.
    if config.train.steps and not config.train.branch:
        lines.append(f"  change and compare:  {shlex.join(train_again)} && {shlex.join(compare)}")
    if config.task == "lm" and not config.data.sources:
        own_text = without(words, "--config.data.sources")
        own_text += ["--workdir=runs/mine", "--config.data.sources=PATH"]
        files = "(.txt, .jsonl, .parquet; file, folder, pattern)"
        lines.append(f"  your own text:       {shlex.join(own_text)}  {files}")
    return lines


def first_prompt(task: Task) -> str:
    """Return the first prompt of the run's samples, "Once" without samples."""
    for evaluation in task.evaluations:
        if isinstance(evaluation, Samples):
            for prompt in evaluation.prompts():
                return prompt
    return "Once"


def changed_option(config: configs.Config, arch: Architecture) -> str:
    """Return an option to try next: attention's output gate flipped, or half the learning rate."""
    if any(block.mixer == "attention" for block in arch.blocks):
        return f"--config.model.output_gate={not config.model.output_gate}"
    return halved_rate(config)


def halved_rate(config: configs.Config) -> str:
    """Return the option that halves the learning rate."""
    return f"--config.train.lr={config.train.lr / 2:g}"


def without(words: Sequence[str], flag: str) -> list[str]:
    """Return a command's words without a flag, its value, and flags below it (--flag.key=value).

    Both --flag=value and --flag value are left out.
    """
    kept = []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if name != flag and not name.startswith(f"{flag}."):
            kept.append(word)
        elif not equals:
            next(remaining, None)  # its value is the next word
    return kept
