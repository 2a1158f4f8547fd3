#!/usr/bin/env bash
# A run on several machines under SLURM: one process a GPU. JAX finds the others by itself, from SLURM's own variables.
#
#     sbatch scripts/slurm.sh digits --steps 100000
#
# Folders must be the same on all machines: the run's (--out), and the data's (--data.path).
#
#SBATCH --job-name=diffjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4          # one process a GPU: JAX gives process i of a machine the GPU i
#SBATCH --gres=gpu:4                 # of a machine; not --gpus-per-task, which hides the others and renumbers
#SBATCH --cpus-per-task=8            # decoding of images, --data.workers (extra `data`)
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120            # two minutes before the end each process is told: it saves, and ends with 143
#SBATCH --requeue                    # a node that fails puts the job back into the queue ...
#SBATCH --open-mode=append           # ... where it goes on in the same log
set -uo pipefail

# HTTP proxies keep JAX's coordination service from answering.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

# --kill-on-bad-exit: where one process fails the others are ended at once, not after the heartbeat (30 s).
# --wait: processes may end some time after the first one has, for process 0 measures and writes.
# A process that ends with 1 or 2 says so in a file, for the code of those that are ended for it, 137, is what srun tells.
export FAILED="$PWD/failed-$SLURM_JOB_ID"
rm -f "$FAILED"
srun --kill-on-bad-exit=1 --wait=600 bash -c \
  'diffjax train "$@"; code=$?; case "$code" in 1 | 2) echo "$code" > "$FAILED" ;; esac; exit "$code"' \
  diffjax "$@" --out "${RUN:-runs/$SLURM_JOB_NAME}"
code=$?
if [ -s "$FAILED" ]; then
  code=$(cat "$FAILED")
  rm -f "$FAILED"
fi

# What may be mended by starting again: 75, a peer is gone; 134 and 137, JAX or SLURM ended it for that; 143, it was told
# to stop and has saved: time is up. The same command goes on from the newest good checkpoint. 1 and 2 need a reader.
case "$code" in
  75 | 134 | 137 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-20}" ]; then
      echo "slurm.sh: code $code, back into the queue"
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
