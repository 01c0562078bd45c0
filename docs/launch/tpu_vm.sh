#!/bin/bash
# ZigMa on a slice of Cloud TPU VMs; the same command runs on every host of it, and they find each other:
#   docs/launch/tpu_vm.sh NAME ZONE --config=configs/faces256.py --workdir=gs://BUCKET/runs/faces256
# Once, before: the project and its packages on every host, and the prepared data on a file system that all share
# (Filestore, or a bucket mounted by gcsfuse) at the same place.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd zigma && uv run --extra tpu --extra gcs python -m zigma_jax.train --distributed $(printf '%q ' "$@")"
