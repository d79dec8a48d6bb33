#!/bin/bash
# A run on Slurm: a Ray of its own on the nodes of the job; continues when it is requeued.
#
#   sbatch --nodes=4 cluster/slurm.sh my.toml /shared/runs/run1 --set votes.n=10000
#
# Nodes may be lost: their work is done elsewhere. Two minutes before the time limit, and when it
# is preempted, the driver stores what it has and ends, and the job queues itself again.
#SBATCH --job-name=diffcert
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -euo pipefail

INCOMPLETE=3
if [[ $# -lt 2 ]]; then
    echo "usage: sbatch cluster/slurm.sh CONFIG RUN [options of diffcert certify]" >&2
    exit 2
fi
config=$1 run=$2
shift 2

# Everybody on these nodes could otherwise run code in this Ray. The file is read by this user only.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/slurm_token_$SLURM_JOB_ID}
mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
(umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # whole: a closed pipe would end this script
head_node=${nodes%%$'\n'*}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node have Rays of their own
address=$head_ip:$port

pids=()
driver=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
# shellcheck disable=SC2329 # called by the trap
stop_driver() {
    echo "told to stop: the driver stores what it has" >&2
    if [[ -n $driver ]]; then kill -TERM "$driver" 2> /dev/null || true; fi
}
trap cleanup EXIT
trap stop_driver TERM

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head_node" \
    ray start --head --block --node-ip-address="$head_ip" --port="$port" --include-dashboard=false &
pids+=($!)
for ((second = 0; ; second++)); do
    if (: > "/dev/tcp/$head_ip/$port") 2> /dev/null; then break; fi
    if ((second >= 120)); then
        echo "Ray did not start on $head_node within 120 s" >&2
        exit 1
    fi
    sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --overlap --kill-on-bad-exit=0 \
        --exclude="$head_node" ray start --address="$address" --block &
    pids+=($!)
fi

diffcert certify "$config" --run "$run" --address "$address" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do # the wait was interrupted by the signal
    code=0
    wait "$driver" || code=$?
done
if ((code == INCOMPLETE)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
