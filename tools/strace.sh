#!/bin/sh
# Sees to it that the tests find strace: on the PATH, or in .cache/ of this folder. A test that finds none says so.
set -eu
cd "$(dirname "$0")/.."

if command -v strace >/dev/null || [ -x .cache/strace ]; then exit 0; fi
command -v apt-get >/dev/null || {
    echo "strace is missing: install the package 'strace' (5.0 or newer) for this system" >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then
    apt-get install -y -qq strace || { apt-get update -qq && apt-get install -y -qq strace; }
    exit 0
fi

# Without root: it is unpacked here. What it is linked with (libunwind, for stack traces) comes along.
mkdir -p .cache/strace-root
root=$PWD/.cache/strace-root
(
    cd "$root"
    # shellcheck disable=SC2046  names of packages are words
    apt-get download -qq strace $(apt-cache depends strace | sed -n 's/^ *Depends: \(libunwind[0-9]*\)$/\1/p') >/dev/null || true
    for archive in *.deb; do [ ! -f "$archive" ] || dpkg -x "$archive" .; done
)
libraries=$(find "$root" -name '*.so*' -exec dirname {} \; | sort -u | paste -sd: -)
printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
    "$libraries" "$root/usr/bin/strace" >.cache/strace.tmp
chmod +x .cache/strace.tmp
.cache/strace.tmp -V >/dev/null 2>&1 || {
    echo "strace is missing and could not be downloaded. As root: apt-get install -y strace" >&2
    exit 1
}
mv .cache/strace.tmp .cache/strace
