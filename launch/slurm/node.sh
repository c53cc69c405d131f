#!/bin/bash
# One node's part of a job's step: says what the node has, then becomes python with the arguments given; after `ranks`
# they are torchrun's. Run by `step` of common.sh.
trap '' USR1 # torchrun would die of it; ranks inherit this until they handle it themselves
"$PYTHON" -m newtonrewards.launch.preflight || exit 2
[ "$1" = ranks ] || exec "$PYTHON" "$@"
shift
exec "$PYTHON" -m newtonrewards.launch.ranks --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" \
    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" --nproc-per-node="$PROCESSES" "$@"
