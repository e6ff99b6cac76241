#!/bin/bash
# Build a corpus by job arrays of Slurm: tasks index the text, one plans the shards, tasks write them.
#
#   TASKS=16 CPUS=16 bash recipes/slurm_corpus.sh --text 'data/*.jsonl' --tokenizer runs/tokenizer --output_dir runs/corpus
#
# takes the options of hfbert corpus; all nodes must see the text and the output directory. SBATCH holds further options
# of sbatch, as "--partition=cpu --time=4:00:00". The tasks share the work by themselves, so any number gives the same
# corpus. A task whose node fails is queued again; after other failures, run the same command again: finished work is
# kept. Kubernetes: an Indexed Job of the same three commands, with --task "$JOB_COMPLETION_INDEX".
set -euo pipefail
tasks=${TASKS:-8} cpus=${CPUS:-16}
read -ra options <<<"${SBATCH:-}"
printf -v words ' %q' hfbert corpus "$@"

# submit STAGE PROCESSES OPTION...: prints the number of the job. A task's number comes from SLURM_ARRAY_TASK_ID.
submit() {
    local stage=$1 processes=$2
    shift 2
    sbatch --parsable --requeue --job-name="corpus-$stage" --cpus-per-task="$processes" "${options[@]}" "$@" \
        --wrap="exec$words --stage $stage --num_proc $processes"
}

index=$(submit index "$cpus" --array="0-$((tasks - 1))")
plan=$(submit plan 1 --dependency="afterok:${index%%;*}" --kill-on-invalid-dep=yes)
write=$(submit write "$cpus" --array="0-$((tasks - 1))" --dependency="afterok:${plan%%;*}" --kill-on-invalid-dep=yes)
echo "index: $index, plan: $plan, write: $write"
