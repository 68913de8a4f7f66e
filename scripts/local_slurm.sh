#!/usr/bin/env bash
# SLURM on this machine alone (controller and one node), for tests and for trying out a launch before the cluster.
#
#   scripts/local_slurm.sh install          (Debian and Ubuntu, as root: slurmctld, slurmd, slurm-client, munge)
#   scripts/local_slurm.sh start [FOLDER]   (as root; default folder /tmp/lingua_synth_slurm: configuration, logs, state)
#   export SLURM_CONF=FOLDER/slurm.conf
#   python -m pytest -m slurm
#   scripts/local_slurm.sh stop [FOLDER]
#
# All daemons live in FOLDER, with a munge of their own: a SLURM that the machine already has is left alone.
set -euo pipefail
action=${1:-}
folder=$(realpath -m "${2:-/tmp/lingua_synth_slurm}")
export SLURM_CONF=$folder/slurm.conf

fail() {
    echo "$1" >&2
    exit 2
}

wait_for() { # a command that succeeds within 30 seconds
    for _ in $(seq 150); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    fail "\`$*\` did not succeed; the logs are in $folder"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

case $action in
install)
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge
    ;;
start)
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin command -v "$program" >/dev/null ||
            fail "no $program: scripts/local_slurm.sh install"
    done
    PATH=$PATH:/usr/sbin
    [ "$(id -u)" = 0 ] || fail "slurmd starts jobs, so it must be root"
    if [ -e "$folder/munged.pid" ]; then
        fail "$folder holds a SLURM that was started; scripts/local_slurm.sh stop $folder"
    fi
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    host=$(hostname -s)
    read -r cpus memory < <(slurmd -C | sed -nE 's/.*CPUs=([0-9]+).*RealMemory=([0-9]+).*/\1 \2/p')

    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

    cat >"$SLURM_CONF" <<CONF
ClusterName=lingua_synth_test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
JobRequeue=1
KillWait=30
MinJobAge=60
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
    slurmctld
    slurmd
    wait_for sh -c "sinfo --noheader --format=%t | grep -q idle"
    echo "SLURM runs on $host: export SLURM_CONF=$SLURM_CONF"
    ;;
stop)
    for daemon in slurmd slurmctld munged; do
        if [ -e "$folder/$daemon.pid" ]; then
            pid=$(cat "$folder/$daemon.pid")
            kill "$pid" 2>/dev/null || true
            while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
            rm -f "$folder/$daemon.pid"
        fi
    done
    ;;
*)
    fail "scripts/local_slurm.sh install | start [FOLDER] | stop [FOLDER]"
    ;;
esac
