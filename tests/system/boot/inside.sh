#!/usr/bin/env bash
# Runs inside the booted system, as root: /src is the repository, /fleet a store and an enrolled device.
failed=0
check() { # check WHAT COMMAND...
    local what=$1
    shift
    if "$@" >/tmp/said 2>&1; then echo "ok    $what"; else
        echo "FAIL  $what"
        sed 's/^/        /' /tmp/said | tail -5
        failed=1
    fi
}
refuses() { ! "$@"; }
until_true() { # until_true SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
shown() { systemctl show -P "$2" "$1"; }
is() { [ "$(shown "$1" "$2")" = "$3" ]; }
is_not() { [ "$(shown "$1" "$2")" != "$3" ]; }
door() { curl -fsS -m 5 --unix-socket /run/edge-runner/door.sock "http://edge$1"; }
tcp() { curl -fsS -m 5 "http://127.0.0.1:8000$1"; }
as() { runuser -u "$@"; }
status_says() { /opt/edge-agent/bin/edge-agent status | grep -q "$1"; }
serves() { tcp /v2/models/defect_detection/ready; }
journal_says() { journalctl -u "$1" -o cat --no-pager | grep -q "$2"; }

# --- as systemd/README.md says ----------------------------------------------------------------------------------------
cp /src/systemd/*.service /src/systemd/*.socket /src/systemd/*.slice /etc/systemd/system/
install -D -m 0644 /src/systemd/sysusers.d/edge-agent.conf /etc/sysusers.d/edge-agent.conf
systemd-sysusers 2>/dev/null
install -d -o root -g edge-agent -m 0750 /etc/edge-agent
install -o root -g edge-agent -m 0640 /fleet/cam-7/* /etc/edge-agent/
systemctl daemon-reload
useradd -G edge-clients camera
useradd stranger

check "both start, and each waits for READY=1" \
    systemctl enable --now edge-runner-models.socket edge-runner-door.socket edge-runner edge-agent
check "the first release is fetched, tried, served, confirmed" until_true 60 status_says confirmed
agent=$(shown edge-agent MainPID) runner=$(shown edge-runner MainPID)

check "the door answers on the unix socket to a member of edge-clients" \
    as camera -- curl -fsS -m 5 --unix-socket /run/edge-runner/door.sock http://edge/v2/health/live
check "the door refuses a stranger on the unix socket" \
    refuses as stranger -- curl -fsS -m 5 --unix-socket /run/edge-runner/door.sock http://edge/v2/health/live
region() { # region NAME VERB: of a file of the same name, as a camera asks
    as camera -- curl -fsS -m 5 --unix-socket /run/edge-runner/door.sock -d "{\"key\": \"$1\", \"byte_size\": 400000}" \
        "http://edge/v2/systemsharedmemory/region/$1/$2"
}
place() { echo "{\"shared_memory_region\": \"frames\", \"shared_memory_offset\": $1, \"shared_memory_byte_size\": $2}"; }
as camera -- sh -c 'cd /dev/shm && truncate -s 400000 frames own && chgrp edge-clients frames && chmod 660 frames && chmod 600 own'
check "a shared memory region of the group edge-clients is registered" region frames register
check "... and carries a frame to the model" as camera -- curl -fsS -m 5 --unix-socket /run/edge-runner/door.sock \
    http://edge/v2/models/defect_detection/infer -d "{\"inputs\": [{\"name\": \"input\", \"datatype\": \"FP32\",
    \"shape\": [1, 3, 160, 160], \"parameters\": $(place 0 307200)}],
    \"outputs\": [{\"name\": \"boxes\", \"parameters\": $(place 307200 35200)}]}"
check "... and its answer back" test "$(tail -c +307201 /dev/shm/frames | tr -d '\0' | wc -c)" -gt 0
check "a region of the camera alone is refused" refuses region own register

check "the door answers on the loopback port, opened by systemd" tcp /v2/health/live
check "a stranger cannot give orders" refuses as stranger -- python3 -c \
    'import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect("/run/edge-runner/models.sock")'
check "the runner cannot read the device's key" refuses as edge-runner -- cat /etc/edge-agent/device.key
check "the agent cannot change its settings" refuses as edge-agent -- touch /etc/edge-agent/agent.yaml
check "the runner sees no network but its own loopback" \
    test "$(nsenter -t "$runner" -n ip -o link | grep -vc ' lo:')" = 0
check "both run without capabilities and cannot gain any" \
    test "$(grep -hE 'CapBnd|NoNewPrivs' "/proc/$agent/status" "/proc/$runner/status" | awk '{print $2}' | tr '\n' ' ')" \
    = "0000000000000000 1 0000000000000000 1 "

systemctl restart edge-agent
check "restarting the agent leaves the runner alone" is edge-runner MainPID "$runner"
check "... and what serves" serves
check "the agent finds the runner again" until_true 20 status_says confirmed

kill -SEGV "$(pgrep -f agent.runner.seat | head -1)"
check "a crashed seat comes back" until_true 20 serves
check "... and the agent tells of it" until_true 10 journal_says edge-agent "incident .*SIGSEGV"

kill -STOP "$runner"
check "a runner that hangs is ended by the watchdog" until_true 45 is_not edge-runner MainPID "$runner"
check "... and serves again: the agent hands the models over anew" until_true 30 serves

systemctl kill -s KILL edge-agent
check "an agent that is killed comes back" until_true 30 is_not edge-agent NRestarts 0
until_true 30 is edge-agent ActiveState active
systemctl kill -s STOP edge-agent
check "an agent that hangs is ended by the watchdog" until_true 60 journal_says edge-agent "Failed with result 'watchdog'"
check "... and comes back" until_true 30 status_says confirmed

cp /etc/edge-agent/agent.yaml /tmp/agent.yaml
echo 'colour: red' >>/etc/edge-agent/agent.yaml
systemctl restart edge-agent 2>/dev/null
sleep 5
check "a wrong setting ends it for good, with status 78" is edge-agent ExecMainStatus 78
check "... is not tried again" is edge-agent ActiveState failed
check "... and is named in the journal" journal_says edge-agent 'unknown field `colour`'
install -o root -g edge-agent -m 0640 /tmp/agent.yaml /etc/edge-agent/agent.yaml
systemctl reset-failed edge-agent
systemctl start edge-agent

systemctl stop edge-agent edge-runner 2>/dev/null
check "both stop cleanly" test "$(shown edge-agent Result) $(shown edge-runner Result)" = "success success"
check "the door stays, and a client starts the runner" door /v2/health/live

if command -v systemd-creds >/dev/null; then
    systemd-creds encrypt --with-key=host --name=device.key /etc/edge-agent/device.key /etc/edge-agent/device.key.cred 2>/dev/null
    rm /etc/edge-agent/device.key
    install -D -m 0644 /src/systemd/drop-ins/10-credential.conf /etc/systemd/system/edge-agent.service.d/10-credential.conf
    sed -i 's#^device_key:.*#device_key: /run/credentials/edge-agent.service/device.key#' /etc/edge-agent/agent.yaml
    systemctl daemon-reload
    check "the device's key may be an encrypted credential" systemctl start edge-agent
    check "... with which releases still open" until_true 30 serves
fi
exit $failed
