"""`make test`: the tests that share the machine, then those that have it alone; what failed is asked once more.

1. A test that failed fails the run, unless at most AT_MOST of its part did and it passes with nothing beside it.
2. One that passes then has a race, or a limit that a busy machine misses: the last lines name it, so that it is mended.
3. Whatever else ends pytest (a broken collection, an interrupt, a crash of its own) ends the run as it is.
"""

import json
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

AT_MOST = 5  # more is no race
FAILED = 1  # pytest's word for it: every test was run, and some failed
END = "--"  # between the words for the two parts


def main(words: list[str]) -> int:
    """Runs `pytest WORDS` for each part of the words; how the first part ended that did not pass, or 0."""
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest hears it too, and ends what its tests have started
    doubtful: list[str] = []
    parts = [list(part) for is_end, part in groupby(words, END.__eq__) if not is_end]
    code = next((code for part in parts if (code := passes(part, doubtful))), 0)
    for one in doubtful:
        print(f"failed, and passed when it was run again alone: {one}: mend its race, or what it takes for granted")
    return code


def passes(part: list[str], doubtful: list[str]) -> int:
    """How a part ended, with what failed run again; what passed then is added to the doubtful."""
    code, failed = run(part)
    if code != FAILED or not 0 < len(failed) <= AT_MOST:
        return code
    print("once more, one after the other:", *failed, sep="\n  ", flush=True)
    code, again = run(failed)
    if code in {0, FAILED}:
        doubtful += [one for one in failed if one not in again]
    return code


def run(words: list[str]) -> tuple[int, list[str]]:
    """How a run of pytest ended, and which tests failed in it, by pytest's own record."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={folder}/cache", *words]
        code = subprocess.run(command, check=False).returncode
        record = Path(folder, "cache", "v", "cache", "lastfailed")
        return code, list(json.loads(record.read_text())) if record.exists() else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
