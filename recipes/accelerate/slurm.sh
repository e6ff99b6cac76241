#!/bin/bash
# Several hosts under Slurm, from the repository's root:
#
#     sbatch --nodes 2 recipes/accelerate/slurm.sh recipes/pretrain.py --config base --micro_batch_size 16 … \
#         --output_dir runs/base
#
# One launcher on each host, one process on each GPU. Ten minutes before the 24 hours below the run saves and stops
# (--max_time; with another --time, change `minutes` too), and the job goes back into the queue, where the same command continues the run. A process that dies
# takes the others with it, and the launchers start them all again, up to three times.
#SBATCH --job-name=hfbert
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

minutes=$((24 * 60 - 10)) # --time above, less ten: what a step, an evaluation and a checkpoint may take
processes=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))
first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
output=
for ((i = 1; i < $#; i++)); do
    [[ ${!i} == --output_dir ]] && next=$((i + 1)) && output=${!next}
done
if [[ -z $output ]]; then
    echo "error: the command has no --output_dir" >&2
    exit 2
fi
started=$(mktemp)

# $SLURM_PROCID is each host's own, so it is for the shell there to read.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file recipes/accelerate/multi_node.yaml \
    --machine_rank "$SLURM_PROCID" "$@"' launch \
    --num_machines "$SLURM_NNODES" --num_processes "$processes" --main_process_ip "$first_host" --max_restarts 3 \
    "$@" --max_time "$minutes"
code=$?

# Launchers return 1 whatever their processes returned; the run's record says whether it stopped because it was told to.
if [[ $output/record.json -nt $started ]] && grep -q '"status": "stopped"' "$output/record.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
rm -f "$started"
exit "$code"
