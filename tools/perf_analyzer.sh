#!/bin/sh
# Sees to it that the tests find perf_analyzer, Triton's load generator, as .cache/perf_analyzer. Nothing is installed: it
# comes out of an old wheel of NVIDIA's client (newer ones want a newer C library), with the two libraries that it needs.
set -eu
cd "$(dirname "$0")/.."

[ -x .cache/perf_analyzer ] && exit 0
root=$PWD/.cache/perf_analyzer-root
rm -rf "$root"
mkdir -p "$root"
python=.venv/bin/python
[ -x "$python" ] || python=python3

"$python" -m pip download -q --no-deps --only-binary :all: -d "$root" tritonclient==2.48.0 'nvidia-cuda-runtime-cu12>=12.4,<13'
for wheel in "$root"/*.whl; do "$python" -m zipfile -e "$wheel" "$root"; done
(cd "$root" && { apt-get download -qq libb64-0d || { apt-get update -qq && apt-get download -qq libb64-0d; }; }) >/dev/null
for archive in "$root"/*.deb; do dpkg -x "$archive" "$root"; done
rm -rf "$root"/*.whl "$root"/*.deb "$root"/tritonclient "$root"/*.data/data/bin/perf_client "$root"/*.data/purelib

binary=$(find "$root" -name perf_analyzer -type f)
chmod +x "$binary"
libraries=$(find "$root" -name 'libb64.so*' -exec dirname {} \; -o -name 'libcudart.so*' -exec dirname {} \; | sort -u | paste -sd: -)
printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
    "$libraries" "$binary" >.cache/perf_analyzer.tmp
chmod +x .cache/perf_analyzer.tmp
.cache/perf_analyzer.tmp --help 2>&1 | grep -q 'Usage:' || {
    echo "perf_analyzer was downloaded and does not run here: ldd $binary says what it lacks" >&2
    exit 1
}
mv .cache/perf_analyzer.tmp .cache/perf_analyzer
