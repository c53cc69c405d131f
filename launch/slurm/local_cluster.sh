#!/bin/bash
# A SLURM cluster of five nodes on this machine, to try the scripts of this folder and to test them.
#
#   launch/slurm/local_cluster.sh start DIR            # until its input ends or it gets a signal; then all is stopped
#   launch/slurm/local_cluster.sh power_off DIR NODE   # a node is gone at once, with all that runs on it
#   export SLURM_CONF=DIR/slurm.conf                   # then squeue, sbatch, ... talk to it
#
# Partitions: main (node1 and 2; urgent may preempt its jobs), urgent (the same nodes), spare (node3 to 5).
# Needs: apt-get install --no-install-recommends slurm-wlm munge, and a DIR that others may enter (munge insists). No
# root, no systemd, no accounting.
set -u

# Of all processes: those that the cluster in folder $1 started, by what stands in their environment.
belonging() { # DIR PATTERN...
    local file pattern
    for file in /proc/[0-9]*/environ; do
        for pattern in "SLURM_CONF=$1/slurm.conf" "${@:2}"; do
            grep -qzE "^$pattern" "$file" 2>/dev/null || continue 2
        done
        file=${file#/proc/}
        echo "${file%/environ}"
    done
}

free_ports() { # N: the first of N ports in a row that nobody listens on
    local base port
    while :; do
        base=$((RANDOM % 20000 + 10000))
        for ((port = base; port < base + $1; port++)); do
            (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
        done
        echo "$base" && return
    done
}

configure() { # DIR
    local dir=$1 port host node
    port=$(free_ports 6)
    host=$(hostname -s)
    mkdir -p "$dir"/{state,log} "$dir"/node{1..5}.spool && chmod 755 "$dir" || return
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    printf 'AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n' >"$dir/gres.conf" # pretend GPUs
    cat >"$dir/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n.spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PropagateResourceLimits=NONE
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
NodeName=DEFAULT CPUs=64 RealMemory=500000 Gres=gpu:2
$(for node in 1 2 3 4 5; do echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node))"; done)
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=node[3-5] MaxTime=INFINITE PriorityTier=1 PreemptMode=OFF
CONF
}

daemon() { # NAME COMMAND...: in a session of its own, so that Ctrl-C in the terminal reaches this script alone
    setsid "${@:2}" </dev/null >"$dir/log/$1.out" 2>&1 &
    pids+=($!)
}

stop() {
    local id left
    trap - EXIT INT TERM HUP
    if timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1; then
        for _ in {1..80}; do
            left=$(timeout 5 squeue -h 2>/dev/null) || break
            [ -n "$left" ] || break
            sleep 0.1
        done
    fi
    for ((id = ${#pids[@]} - 1; id >= 0; id--)); do kill "${pids[id]}" 2>/dev/null; done
    for _ in {1..50}; do [ -n "$(jobs -rp)" ] && sleep 0.1; done
    for id in "${pids[@]}"; do kill -KILL "$id" 2>/dev/null; done
    for id in $(belonging "$dir" LOCAL_NODE=) $(belonging "$dir" SLURM_JOB_ID=); do kill -KILL "$id" 2>/dev/null; done
}

start() {
    local node
    pids=()
    configure "$dir" || exit
    export SLURM_CONF=$dir/slurm.conf
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    daemon munged munged -F --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --seed-file="$dir/munged.seed" --log-file="$dir/log/munged.log"
    for _ in {1..100}; do [ -S "$dir/munge.socket" ] || sleep 0.1; done
    [ -S "$dir/munge.socket" ] || { cat "$dir/log/munged.out" >&2 && exit 1; }
    daemon slurmctld slurmctld -D -i
    for node in node{1..5}; do daemon "$node" env "LOCAL_NODE=$node" slurmd -D -N "$node"; done
    for _ in {1..300}; do
        [ "$(jobs -rp | wc -l)" = 7 ] || break
        if [ "$(sinfo -hN -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 5 ]; then
            echo "ready: export SLURM_CONF=$SLURM_CONF"
            cat <&0 >/dev/null &
            wait $!
            exit 0
        fi
        sleep 0.1
    done
    echo "the cluster didn't come up:" >&2
    tail -n 20 "$dir"/log/* >&2
    exit 1
}

power_off() { # NODE
    local ids
    mapfile -t ids < <(belonging "$dir" "SLURMD_NODENAME=$1" && belonging "$dir" "LOCAL_NODE=$1")
    [ "${#ids[@]}" -gt 0 ] || { echo "nothing runs on $1" >&2 && exit 1; }
    kill -KILL "${ids[@]}" 2>/dev/null
    return 0 # one may have ended by itself
}

PATH=$PATH:/usr/sbin:/sbin
case "${1:-} $#" in
    "start 2") dir=$(mkdir -p "$2" && cd "$2" && pwd -P) && start ;;
    "power_off 3") dir=$(cd "$2" && pwd -P) && power_off "$3" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
