#!/usr/bin/env bash
# Boots a real systemd in a container, installs the units as systemd/README.md says, and tries what they promise.
# As root, with apt packages systemd-container and mmdebstrap, a network for the first run, and `make env`. Two
# minutes the first time, one after. Not part of `make test`: it needs root and cgroups.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../../.." && pwd)
suite=${1:-bookworm}
cache=$repository/.cache/boot
root=$cache/$suite
bin=$repository/.venv/bin
name=edge-boot-$$
work=$(mktemp -d)
mkdir -p "$cache"

[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 2; }
for tool in systemd-nspawn mmdebstrap; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install -y systemd-container mmdebstrap" >&2; exit 2; }
done

make_root() {
    mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,python3-venv,curl,procps,iproute2 \
        "$suite" "$cache/$suite.tar"
    mkdir -p "$root.new"
    tar -C "$root.new" -xpf "$cache/$suite.tar"
    chroot "$root.new" python3 -m venv --without-pip /opt/edge-agent
    rm "$cache/$suite.tar"
    mv "$root.new" "$root"
}

install_package() {
    version=$(chroot "$root" python3 -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
    site=$root/opt/edge-agent/lib/python$version/site-packages
    "$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work" "$repository"
    wheel=$(echo "$work"/*.whl)
    [ -d "$site/onnxruntime" ] || "$bin/python" -m pip install --quiet --target "$site" --python-version "$version" \
        --only-binary=:all: "$wheel[cpu]"
    rm -rf "$site"/{agent,client,models,fleet,provisioning,bin,edge_model_agent-*}
    "$bin/python" -m pip install --quiet --target "$site" --no-deps --python-version "$version" --only-binary=:all: "$wheel"
    for pair in edge-agent:agent.daemon.cli edge-runner:agent.runner.main; do
        printf '#!/opt/edge-agent/bin/python3\nfrom %s import main\n\nmain()\n' "${pair#*:}" >"$root/opt/edge-agent/bin/${pair%:*}"
        chmod 755 "$root/opt/edge-agent/bin/${pair%:*}"
    done
}

make_fleet() { # a store and a device; what the container sees as /fleet
    model=defect_detection_ssd_plates_20250628
    desk=(--store "file://$work/fleet/store" --keys "$work/keys")
    mkdir -p "$work/fleet/store"
    "$bin/edge-provision" keys init "$work/keys"
    "$bin/edge-provision" group init line-1 --keys "$work/keys"
    "$bin/edge-provision" store init "${desk[@]}"
    "$bin/edge-provision" device enrol cam-7 --group line-1 --out "$work/fleet/cam-7" --installed /etc/edge-agent "${desk[@]}"
    "$bin/edge-fleet" publish $model --folder "$repository/models" "${desk[@]}" 2>/dev/null
    "$bin/edge-fleet" rollout --group line-1 --release $model --soak 3 "${desk[@]}"
    sed -i 's#url: .*#url: file:///fleet/store#' "$work/fleet/cam-7/agent.yaml"
}

boot() { # nspawn gets a cgroup of its own first, else it takes the root of ours
    for tree in systemd unified .; do [ -d /sys/fs/cgroup/$tree ] && mkdir -p "/sys/fs/cgroup/$tree/$name"; done
    (
        for tree in systemd unified .; do
            [ -d /sys/fs/cgroup/$tree ] && echo "$BASHPID" >"/sys/fs/cgroup/$tree/$name/cgroup.procs" || true
        done
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec setsid systemd-nspawn -q -D "$root" -M "$name" --boot --volatile=overlay \
            --register=no --keep-unit --link-journal=no --console=read-only --capability=all --system-call-filter=bpf \
            --bind-ro="$repository:/src" --bind-ro="$work/fleet:/fleet" </dev/null >"$work/console" 2>&1
    ) &
    nspawn=$!
    for _ in $(seq 300); do
        leader=$(for child in $(pgrep -P $nspawn) $(pgrep -P "$(pgrep -d, -P $nspawn)" 2>/dev/null); do
            [ "$(cat "/proc/$child/comm")" = systemd ] && echo "$child"; done | head -1) || true
        [ -n "$leader" ] && nsenter -t "$leader" -a systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded' && return
        sleep 0.1
    done
    echo "it does not boot:" >&2
    tail -20 "$work/console" >&2
    exit 1
}

clean_up() {
    [ -z "${leader:-}" ] || kill -s RTMIN+4 "$leader" 2>/dev/null || true
    [ -z "${nspawn:-}" ] || wait "$nspawn" 2>/dev/null || true
    for tree in systemd unified .; do
        find "/sys/fs/cgroup/$tree/$name" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT

[ -d "$root" ] || make_root
install_package
make_fleet
boot
nsenter -t "$leader" -a bash /src/tests/system/boot/inside.sh
