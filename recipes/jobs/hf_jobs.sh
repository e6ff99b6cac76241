#!/bin/bash
# One hfbert command in an HF Job, with its run kept in a bucket so that the next attempt continues it:
#
#     bash hf_jobs.sh hf://buckets/OWNER/BUCKET/base pretrain --config base … --output_dir runs/base
#
# The run is written to the job's own disk, where a rename is atomic, and copied to the bucket every ten minutes
# (SYNC_SECONDS) and at the end. A copy taken while a checkpoint is written is harmless: checkpoints carry checksums, and
# the newest whole one is continued. Exit code 75 (stopped, with a checkpoint) counts as failed, so `hf jobs run
# --attempts N` starts the next attempt.
set -uo pipefail

if (($# < 2)) || [[ $1 != hf://buckets/* ]]; then
    echo "usage: hf_jobs.sh hf://buckets/OWNER/BUCKET/RUN COMMAND … --output_dir DIRECTORY" >&2
    exit 2
fi
bucket=$1
shift
output=
for ((i = 1; i < $#; i++)); do
    [[ ${!i} == --output_dir ]] && next=$((i + 1)) && output=${!next}
done
if [[ -z $output ]]; then
    echo "error: the command has no --output_dir" >&2
    exit 2
fi

mkdir -p "$output"
if ! hf sync "$bucket" "$output" --quiet; then
    echo "error: $bucket could not be read; create it with: hf buckets create OWNER/BUCKET" >&2
    exit 7
fi

hfbert "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null' TERM INT
(
    while sleep "${SYNC_SECONDS:-600}"; do
        hf sync "$output" "$bucket" --quiet || echo "warning: $output was not copied to $bucket" >&2
    done
) &
copies=$!

wait "$run"
code=$?
if kill -0 "$run" 2>/dev/null; then # the signal ended the wait; the run is saving
    wait "$run"
    code=$?
fi
kill "$copies" 2>/dev/null
if ! hf sync "$output" "$bucket" --delete --quiet; then
    echo "error: $output was not copied to $bucket" >&2
    [[ $code == 0 ]] && code=7
fi
exit "$code"
