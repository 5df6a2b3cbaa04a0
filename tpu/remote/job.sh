#!/usr/bin/env bash
# One program on one machine of a slice: started so that it outlives the connection, looked at, followed, stopped.
#
#   job.sh start FOLDER ATTEMPT PROGRAM...   start it, unless ATTEMPT has been started already
#   job.sh status FOLDER                     one line: see the function
#   job.sh follow FOLDER FIRST_BYTE          its output from a byte on (counted from 1) until it ends, then its status
#   job.sh stop FOLDER                       end it, and let it save first
#
# FOLDER holds code/, environment (KEY='value' lines) and, once started: attempt, log, pid, boot_id, exit_code.
set -euo pipefail

MARK="@@rlhf-job"
SECONDS_TO_SAVE=120
VENV="$HOME/rlhf-venv"

# What the machine is asked to run in the background. It passes a signal on, since the machine's shutdown sends one to both.
run() {
    set -a
    # shellcheck disable=SC1091
    . ./environment
    set +a
    export PATH="$VENV/bin:$PATH"
    # The machines of a slice act as one: JAX finds the others by the slice's metadata.
    export RLHF_DISTRIBUTED="${RLHF_DISTRIBUTED:-1}"
    cd code
    trap 'kill -TERM "${!:-}" 2> /dev/null || true' TERM INT
    "$@" &
    local program=$! exit_code
    # A signal interrupts waiting, and the program goes on to save.
    while true; do
        exit_code=0
        wait "$program" || exit_code=$?
        kill -0 "$program" 2> /dev/null || break
    done
    cd ..
    echo "$exit_code" > exit_code.partial
    mv exit_code.partial exit_code
}

is_running() {
    [[ -f pid ]] && kill -0 "$(cat pid)" 2> /dev/null && [[ "$(cat boot_id)" == "$(cat /proc/sys/kernel/random/boot_id)" ]]
}

# absent | running ATTEMPT | exited ATTEMPT CODE | rebooted ATTEMPT | vanished ATTEMPT
status() {
    if [[ ! -f attempt ]]; then
        echo absent
    elif [[ -f exit_code ]]; then
        echo "exited $(cat attempt) $(cat exit_code)"
    elif is_running; then
        echo "running $(cat attempt)"
    elif [[ "$(cat boot_id)" != "$(cat /proc/sys/kernel/random/boot_id)" ]]; then
        echo "rebooted $(cat attempt)"
    else
        echo "vanished $(cat attempt)"
    fi
}

stop() {
    is_running || return 0
    kill -TERM "$(cat pid)" 2> /dev/null || true
    for ((second = 0; second < SECONDS_TO_SAVE; second++)); do
        is_running || return 0
        sleep 1
    done
    kill -KILL -- "-$(cat pid)" 2> /dev/null || true
}

start() {
    local attempt=$1
    shift
    # ssh may send a command twice when a connection breaks.
    if [[ -f attempt && "$(cat attempt)" == "$attempt" ]]; then return 0; fi
    stop
    rm -f exit_code log
    cat /proc/sys/kernel/random/boot_id > boot_id
    setsid nohup bash "$SCRIPT" run . "$@" > log 2>&1 < /dev/null &
    echo $! > pid
    echo "$attempt" > attempt
}

follow() {
    local first_byte=$1
    if [[ -f pid ]]; then
        printf '%s from %s\n' "$MARK" "$first_byte"
        tail --pid="$(cat pid)" --sleep-interval=0.5 -c "+$first_byte" -f log
    fi
    # The program's last act and the end of its process are not one moment.
    for ((tenth = 0; tenth < 20; tenth++)); do
        is_running || break
        sleep 0.1
    done
    printf '\n%s %s\n' "$MARK" "$(status)"
}

SCRIPT=$(realpath "$0")
command=$1
cd "$2"
shift 2
case $command in
    start | run | status | follow | stop) "$command" "$@" ;;
    *)
        echo "job.sh: unknown command $command" >&2
        exit 2
        ;;
esac
