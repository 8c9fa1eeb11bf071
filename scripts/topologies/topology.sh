# shellcheck shell=bash
# What the scripts beside this one share; each sources it and calls `topology` once. Not for running.

# topology NODES GPUS_PER_NODE WORD... -- "$@"   runs ng_run with the words and then the user's
topology() {
    nodes=$1 gpus_per_node=$2
    shift 2
    local words=()
    while [[ $1 != -- ]]; do
        words+=("$1")
        shift
    done
    shift
    local dry_run=
    while [[ $# -gt 0 ]]; do
        case $1 in
            -h | --help) show_help "${words[@]}" && exit 0 ;;
            --dry-run)
                dry_run=yes
                words+=("+cluster=${nodes}x$gpus_per_node" +dry_run=true)
                ;;
            -*) fail "unknown option '$1'; known are --dry-run and --help" ;;
            *)
                [[ $1 != *dry_run=[Tt]rue ]] || dry_run=yes
                words+=("$1")
                ;;
        esac
        shift
    done
    if [[ -z $dry_run ]]; then check_cluster; fi
    local program
    program=$(find_ng_run)
    exec "$program" "${words[@]}"
}

show_help() {
    cat <<TEXT
usage: scripts/topologies/$name [--dry-run] [ng_run overrides ...]

$(what_it_is)

  ng_run$(for word in "$@"; do printf ' \\\n    %s' "$(quoted "$word")"; done)

Further words are given to ng_run after these$(if [[ $* == *policy_model* ]]; then
        echo "; another +config_paths=[...] is another model in this topology"
    fi).
Needs $(needs).

  --dry-run   draw the plan on ${nodes}x$gpus_per_node GPUs and stop; works anywhere
TEXT
}

quoted() { if [[ $1 == *[^[:alnum:]_+./=:-]* ]]; then printf '"%s"' "$1"; else printf '%s' "$1"; fi; }

# The comment at the top of the script that was started.
what_it_is() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"; }

needs() {
    if [[ $nodes -eq 1 ]]; then
        echo "one node of $gpus_per_node GPUs, or a Ray cluster with room for it at RAY_ADDRESS"
    else
        echo "a Ray cluster with $nodes nodes of $gpus_per_node GPUs at RAY_ADDRESS;" \
            "scripts/cluster/ssh and scripts/cluster/slurm.sbatch start one, and this on it"
    fi
}

check_cluster() {
    if [[ $nodes -gt 1 && -z ${RAY_ADDRESS:-} ]]; then fail "it needs $(needs)"; fi
}

find_ng_run() {
    local ours=$root/.venv/bin/ng_run
    if [[ -x $ours ]]; then
        echo "$ours"
    else
        command -v ng_run || fail "there is no ng_run here: scripts/setup installs it in .venv"
    fi
}

fail() {
    printf '%s: %s\n' "$name" "$1" >&2
    exit 2
}

script=$0
name=$(basename -- "$script")
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
