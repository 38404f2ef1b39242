#!/bin/sh
# Sees to it that the tests find a program: on the PATH, where daemons lie, or in .cache/ of this folder.
# tools/apt.sh PROGRAM OLDEST-VERSION, where the program's package has its name.
# Root installs the package. Anybody else gets it and its libraries unpacked in .cache/, with a wrapper that finds them.
set -eu
program=$1
oldest=$2
cd "$(dirname "$0")/.."

missing() {
    echo "$program is missing$1: install the package '$program' ($oldest or newer); as root: apt-get install -y $program" >&2
    exit 1
}

if PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$program" >/dev/null || [ -x ".cache/$program" ]; then exit 0; fi
command -v apt-get >/dev/null || missing ""
if [ "$(id -u)" = 0 ]; then
    apt-get install -y -qq "$program" || { apt-get update -qq && apt-get install -y -qq "$program"; } || missing ""
    exit 0
fi

root=$PWD/.cache/$program-root
libraries() { apt-cache depends "$@" 2>/dev/null | sed -n '/: libc6$/d; s/^ *Depends: \(lib[a-z0-9.+-]*\)$/\1/p'; }
near=$(libraries "$program")
# shellcheck disable=SC2086  names of packages are words
packages=$(printf '%s\n' "$program" $near $(libraries $near) | sort -u | paste -sd' ' -)
mkdir -p "$root"
(
    cd "$root"
    # shellcheck disable=SC2086
    apt-get download -qq $packages >/dev/null || true
    for archive in *.deb; do [ ! -f "$archive" ] || dpkg -x "$archive" .; done
)
found=$(find "$root" -path "*bin/$program" -type f | head -n 1)
[ -n "$found" ] || missing ", and could not be downloaded with what it needs ($packages)"
paths=$(find "$root" -name '*.so*' -exec dirname {} \; | sort -u | paste -sd: -)
printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
    "$paths" "$found" >".cache/$program.tmp"
chmod +x ".cache/$program.tmp"
ran=0
".cache/$program.tmp" -h >/dev/null 2>&1 || ran=$?
[ "$ran" -lt 126 ] || missing ", and what was downloaded does not run ($packages)"  # 127: a library is not there
mv ".cache/$program.tmp" ".cache/$program"
