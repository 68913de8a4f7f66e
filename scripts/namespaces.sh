#!/bin/bash
# Several "machines" on one: network namespaces that see each other by TCP alone, as the nodes of a cluster do, and
# share this machine's disk as a cluster's file system. For tests, and for trying a multi-node command before it costs.
#
#   scripts/namespaces.sh up 2                         # nodes 0 and 1, at 10.77.0.1 and 10.77.0.2
#   scripts/namespaces.sh torchrun 2 2 -m lingua_synth.train config=run.yaml    # 2 nodes of 2 ranks; then down
#   scripts/namespaces.sh exec 1 ping -c 1 10.77.0.1   # a command on one node
#   scripts/namespaces.sh down
#
# Needs root and iproute2 (in a container: --cap-add NET_ADMIN --cap-add SYS_ADMIN). NAMESPACES_PREFIX (default lingua)
# and NAMESPACES_NET (default 10.77.0) keep two sets apart. Nothing outside the namespaces is changed, but for their
# names in /etc/netns, which `down` removes.
set -euo pipefail

prefix=${NAMESPACES_PREFIX:-lingua}
net=${NAMESPACES_NET:-10.77.0}
switch="$prefix-switch"

node() { echo "$prefix-node$1"; }

up() {
    ip netns add "$switch"
    ip -n "$switch" link add bridge type bridge
    ip -n "$switch" link set bridge up
    for ((i = 0; i < $1; i++)); do
        # Names of all nodes: torch asks for the name behind every address, and without a name server that is 10 s each.
        mkdir -p "/etc/netns/$(node "$i")"
        echo "127.0.0.1 localhost $(hostname)" >"/etc/netns/$(node "$i")/hosts"
        for ((j = 0; j < $1; j++)); do
            echo "$net.$((j + 1)) $(node "$j")" >>"/etc/netns/$(node "$i")/hosts"
        done
        ip netns add "$(node "$i")"
        ip -n "$switch" link add "port$i" type veth peer name eth0 netns "$(node "$i")"
        ip -n "$switch" link set "port$i" master bridge up
        ip -n "$(node "$i")" address add "$net.$((i + 1))/24" dev eth0
        ip -n "$(node "$i")" link set eth0 up
        ip -n "$(node "$i")" link set lo up
    done
}

down() {
    for name in $(ip netns list | cut -d' ' -f1); do
        case $name in "$switch" | "$prefix"-node*) ip netns delete "$name" && rm -rf "/etc/netns/$name" ;; esac
    done
    rmdir /etc/netns 2>/dev/null || true # others may have namespaces too
}

# One node's torchrun. All nodes get the same command, but for who hosts the rendezvous and its own address. Without a
# store for each round, a node that takes a lost one's place waits in vain for an address that was given before it came.
torchrun_on() { # node, nodes, ranks per node, command ...
    local i=$1 nodes=$2 ranks=$3 is_host=false
    shift 3
    [ "$i" = 0 ] && is_host=true
    exec ip netns exec "$(node "$i")" env GLOO_SOCKET_IFNAME=eth0 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
        "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes "$nodes" --nproc-per-node "$ranks" --max-restarts "${MAX_RESTARTS:-0}" \
        --rdzv-backend c10d --rdzv-id "$prefix" --rdzv-endpoint "$net.1:29400" --rdzv-conf "is_host=$is_host" \
        --local-addr "$net.$((i + 1))" "$@"
}

case ${1:-} in
    up) up "$2" ;;
    down) down ;;
    exec)
        i=$2
        shift 2
        exec ip netns exec "$(node "$i")" "$@"
        ;;
    torchrun-on)
        shift
        torchrun_on "$@"
        ;;
    torchrun)
        shift
        trap down EXIT
        up "$1"
        pids=()
        for ((i = 0; i < $1; i++)); do
            torchrun_on "$i" "$@" &
            pids+=($!)
        done
        status=0
        for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
        exit "$status"
        ;;
    *)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
