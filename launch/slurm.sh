#!/usr/bin/env bash
# Several GPU nodes under Slurm:
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/300m.py --workdir=/shared/runs/300m [--config.FIELD=VALUE ...]
#
# One process a GPU, found by JAX itself from Slurm's variables. Checkout, environment, work directory and prepared text are on a file system
# that all nodes share. A requeued or resubmitted job goes on from its last checkpoint.
#SBATCH --job-name=slmjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slmjax-%j.log
#SBATCH --signal=TERM@180
# The last line asks the processes to save and leave three minutes before the time is up. GPUs are given to the node and not to a task
# (no --gpus-per-task): each process picks its own among all that it sees.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch from the checkout}"

VENV=${VENV:-.venv} # made once: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda13,hub]'

# One process writes the tokens that all of them read; with the text prepared already, this takes seconds.
srun --nodes=1 --ntasks=1 "$VENV/bin/python" -m slmjax.launch "$@" --config.stage=prepare
srun --kill-on-bad-exit=1 "$VENV/bin/python" -m slmjax.launch "$@"
