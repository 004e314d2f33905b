"""python -m tests.pretend COMMAND …: a command whose processes have the pretended GPU, each rank one of its own.

python -m tests.pretend python -m scripts.gpu_memory
python -m tests.pretend python -m torch.distributed.run --nproc-per-node 2 -m scripts.gpu_memory
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pretend import build, card


def main(words: list[str]) -> int:
    if not words or (why := build.missing()):
        print(__doc__ if not words else why, file=sys.stderr)
        return 2
    root = build.HERE.parent.parent
    with tempfile.TemporaryDirectory(prefix="pretended-") as folder:
        variables = {
            **os.environ, build.LIBRARY: str(build.library(Path(folder))), card.CARD: card.A100.name,
            "DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([str(build.HERE / "site"), str(root), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        return subprocess.run(words, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
