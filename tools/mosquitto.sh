#!/bin/sh
# Sees to it that the tests find a mosquitto: on the PATH, in /usr/sbin, or in .cache/ of this folder.
set -eu
cd "$(dirname "$0")/.."

if PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null || [ -x .cache/mosquitto ]; then exit 0; fi
command -v apt-get >/dev/null || {
    echo "mosquitto is missing: install the package 'mosquitto' (2.0 or newer) for this system" >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then
    apt-get install -y -qq mosquitto || { apt-get update -qq && apt-get install -y -qq mosquitto; }
    exit 0
fi

# Without root: the packages are unpacked here, and a wrapper says where the libraries are.
mkdir -p .cache/mosquitto-root
root=$PWD/.cache/mosquitto-root
needs() { apt-cache depends "$@" | sed -n 's/^ *Depends: \([a-z0-9.+-]*\)$/\1/p' | grep '^lib' | grep -v '^libc6$'; }
(
    cd "$root"
    libraries=$(needs mosquitto)
    # shellcheck disable=SC2046,SC2086  names of packages are words
    apt-get download -qq mosquitto $libraries $(needs $libraries) >/dev/null || true
    for archive in *.deb; do dpkg -x "$archive" .; done
)
[ -x "$root/usr/sbin/mosquitto" ] || {
    echo "mosquitto is missing and could not be downloaded. As root: apt-get install -y mosquitto" >&2
    exit 1
}
libraries=$(find "$root" -name '*.so*' -exec dirname {} \; | sort -u | paste -sd: -)
printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
    "$libraries" "$root/usr/sbin/mosquitto" >.cache/mosquitto.tmp
chmod +x .cache/mosquitto.tmp
.cache/mosquitto.tmp -h >/dev/null 2>&1 || [ $? = 3 ] || [ $? = 1 ] || {
    echo "the downloaded mosquitto does not run. As root: apt-get install -y mosquitto" >&2
    exit 1
}
mv .cache/mosquitto.tmp .cache/mosquitto
