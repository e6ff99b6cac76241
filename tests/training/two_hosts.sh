#!/bin/bash
# Two hosts in two network namespaces of this machine: a run over both, the cable cut, a host killed. Needs root and
# iproute2; leaves nothing behind. Called by test_two_hosts.py; by hand: tests/two_hosts.sh up | run R COMMAND… | cut |
# mend | down, R being 0 or 1.
set -euo pipefail

tag=${HFBERT_HOSTS_TAG:-hfb}
case $1 in
up)
    for r in 0 1; do
        ip netns add "$tag$r"
        ip -n "$tag$r" link set lo up
    done
    ip link add "${tag}v0" netns "${tag}0" type veth peer name "${tag}v1" netns "${tag}1"
    for r in 0 1; do
        ip -n "$tag$r" address add "10.77.0.$((r + 1))/24" dev "${tag}v$r"
        ip -n "$tag$r" link set "${tag}v$r" up
    done
    ;;
run) exec ip netns exec "$tag$2" "${@:3}" ;;
cut) ip -n "${tag}1" link set "${tag}v1" down ;;
mend) ip -n "${tag}1" link set "${tag}v1" up ;;
down)
    for r in 0 1; do ip netns delete "$tag$r" 2>/dev/null || true; done
    ;;
*) echo "error: $1 is none of up, run, cut, mend, down" >&2 && exit 2 ;;
esac
