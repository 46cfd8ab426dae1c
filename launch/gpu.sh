#!/usr/bin/env bash
# One machine with NVIDIA GPUs, all of which are used:
#
#   launch/gpu.sh --config=configs/50m.py [--workdir=runs/50m] [--config.FIELD=VALUE ...]
#
# Makes an environment where there is none and becomes the launcher. The same command after a crash goes on from the last checkpoint; to have
# that done overnight (status 2 is a mistake in the command):
#
#   until launch/gpu.sh --config=configs/50m.py || [ $? = 2 ]; do sleep 10; done
set -euo pipefail
cd "$(dirname "$0")/.."

CUDA=${CUDA:-cuda13}      # cuda12 for a driver older than CUDA 13
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3} # 3.11 or newer

[[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet -e ".[$CUDA,hub]"
exec "$VENV/bin/python" -m slmjax.launch "$@"
