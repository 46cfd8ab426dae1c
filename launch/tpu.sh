#!/usr/bin/env bash
# A TPU slice on Google Cloud, from this machine:
#
#   export NAME=slm ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   launch/tpu.sh create            a slice now (`queue`: when there is room; SPOT=1: cheaper, may be taken away)
#   launch/tpu.sh copy              this checkout and its environment on every host; again after a change
#   launch/tpu.sh run --config=configs/300m.py --workdir=gs://BUCKET/300m [--config.FIELD=VALUE ...]
#   launch/tpu.sh log               follow the first host's log; Ctrl-C ends only the following
#   launch/tpu.sh stop              save a checkpoint and leave; `run` with the same words goes on
#   launch/tpu.sh delete            give the slice back
#
# The work directory must be on gs://, in the slice's region. Every host prepares the text for itself into CACHE, so sources are on gs://
# or hf://, or the embedded textbook. Needs gcloud, signed in and with a project. GCLOUD=echo shows the commands and runs none.
# Compiled for TPUs ahead of time in our tests, but this script has not been run by its authors.
set -euo pipefail
cd "$(dirname "$0")/.."

GCLOUD=${GCLOUD:-gcloud}
NAME=${NAME:-slm}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-}
CACHE=${CACHE:-/tmp/prepared} # on each host; a mounted disk for large corpora
PORT=8476

on_hosts() { # on_hosts WORKER COMMAND
  "$GCLOUD" compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

case ${1:-} in
  create)
    "$GCLOUD" compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$RUNTIME" ${SPOT:+--spot}
    ;;
  queue)
    "$GCLOUD" compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME" ${SPOT:+--spot}
    ;;
  copy)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    "$GCLOUD" compute tpus tpu-vm scp "$archive" "$NAME:slmjax.tar.gz" --zone="$ZONE" --worker=all
    # The hosts' own Python is older than 3.11; uv brings one.
    on_hosts all 'set -e; mkdir -p slmjax; tar -xzf slmjax.tar.gz -C slmjax; cd slmjax; python3 -m pip install --quiet --user uv
      [ -d .venv ] || python3 -m uv venv --quiet --python 3.12 .venv; python3 -m uv pip install --quiet --python .venv -e ".[tpu,hub]"'
    ;;
  run)
    shift
    printf -v words ' %q' "$@" "--config.data.cache=$CACHE"
    # Every host is told where the first one is; how many there are and which it is, JAX reads from the slice's metadata.
    first=$("$GCLOUD" compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(networkEndpoints[0].ipAddress)')
    script="python -m slmjax.launch$words --config.stage=prepare && exec env JAX_COORDINATOR_ADDRESS=$first:$PORT python -m slmjax.launch$words"
    printf -v script '%q' "$script"
    on_hosts all "cd slmjax && . .venv/bin/activate && (setsid bash -c $script >run.log 2>&1 </dev/null & echo \$! >run.pid)"
    echo "started; launch/tpu.sh log follows it"
    ;;
  log)
    on_hosts 0 'tail -n 100 -F slmjax/run.log'
    ;;
  stop)
    # shellcheck disable=SC2016  # the hosts expand it
    on_hosts all 'kill -TERM "$(cat slmjax/run.pid)"'
    ;;
  delete)
    "$GCLOUD" compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
    ;;
  *)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 2
    ;;
esac
