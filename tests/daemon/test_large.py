"""The largest models that the format takes pass through an agent that may use 512 MB."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cryptography.cobblestone import Cobblestone256Encryptor

from agent.trust.sealing import SealedPart, seal

SIZE = 2_000_000_000  # a protobuf ends at 2 GiB, and with it an ONNX file
BLOCK = bytes(4_000_000)
LIMIT = 512 * 2**20  # MemoryMax= of systemd/edge-agent.service
POUR = """
import json, os, resource, sys
from pathlib import Path
from agent.adapters import memory_file
from agent.daemon.keyring import pieces
from agent.daemon.runner_link import pour
from agent.trust.sealing import Opener

sealed, key, limit = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
opener = Opener(key, "targets/releases/large", pieces(sealed), int(sys.argv[4]))
number = memory_file.reserve("large", opener.parts[0].size)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
pour(opener, [os.dup(number)])
status = Path("/proc/self/status").read_text().split()
print(json.dumps({"peak": int(status[status.index("VmHWM:") + 1]) * 1024, "size": memory_file.size(number)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 2 * SIZE, reason="needs 4 GB of free memory")
def test_a_model_of_two_gigabytes_is_handed_over_within_the_agents_memory(tmp_path):
    """It is opened, checked and written piece by piece; the agent's peak says nothing of the model's size."""
    digest = hashlib.sha256()
    for _ in range(SIZE // len(BLOCK)):
        digest.update(BLOCK)
    part = SealedPart(name="model.onnx", size=SIZE, sha256=digest.hexdigest(), group=4)
    key = Cobblestone256Encryptor.generate_key()
    with (tmp_path / "sealed").open("wb") as out:
        contents = (BLOCK for _ in range(SIZE // len(BLOCK)))
        for piece in seal(key, "targets/releases/large", [part], [contents]):
            out.write(piece)
    command = [sys.executable, "-c", POUR, str(tmp_path / "sealed"), key.hex(), str(LIMIT), str(SIZE)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    said = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    assert said["size"] == SIZE
    assert said["peak"] < LIMIT / 2
