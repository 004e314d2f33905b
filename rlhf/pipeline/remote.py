"""Other machines, reached by ssh: what they have, and how ranks are started there.

On each host runs `python -m rlhf.pipeline.node`, which reads what it shall do from its input: so no variable, such as a
token, stands in a command that other users can list, and a host knows from the end of its input that we are gone.
Imports no torch.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf.errors import EXIT_FAILURE, EXIT_USER
from rlhf.pipeline.placed import ROOT, Placement, RankFailed
from rlhf.versions import on_a_node, version_problems

_SSH = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
# A link may be gone for five minutes.
_SSH_ALIVE = ("-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10")
_SSH_FAILED = 255  # ssh's own exit code
_ANSWER_SECONDS = 60.0
_FAILED_MARK = "\x1efailed "
# Variables of this machine that the ranks of other machines need as well, by the beginnings of their names.
_TRAVELS = (
    *("ACCELERATE_", "CUDA_", "CURL_CA_BUNDLE", "CXX", "DISABLE_", "DS_", "FI_", "GLOO_", "HF_", "HUGGING_FACE_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MKL_", "MLFLOW", "MV2", "NCCL", "NO_PROXY"),
    *(
        "OMP_",
        "ONEDNN_",
        "PYTHON",
        "PYTORCH_",
        "REQUESTS_CA_BUNDLE",
        "RLHF_",
        "SAFETENSORS_",
        "SSL_CERT_",
        "TOKENIZERS_",
    ),
    *("TORCH", "TRANSFORMERS_", "TRITON_", "UCX", "WANDB_", "XDG_CACHE_HOME", "http_proxy", "https_proxy", "no_proxy"),
)
_STAYS = ("CUDA_VISIBLE_DEVICES", "DS_ENV_FILE", "RLHF_EVENTS", "RLHF_OWNER")


def command(host: str, task: str) -> list[str]:
    """The command that does `task` ("ask" or "run") of `rlhf.pipeline.node` on a host; this machine needs no ssh."""
    words = ["env", f"PYTHONPATH={ROOT}", "PYTHONSAFEPATH=1", sys.executable, "-u", "-m", "rlhf.pipeline.node", task]
    if is_here(host):
        return words
    return ["ssh", *_SSH, *(_SSH_ALIVE if task == "run" else ()), host, f"exec {shlex.join(words)}"]


def is_here(host: str) -> bool:
    """Whether a name of a hostfile is this machine's."""
    return host in ("localhost", "127.0.0.1", socket.gethostname())


def job(package: str, arguments: Sequence[str], placement: Placement, *, node_rank: int) -> str:
    """What a host reads first: a line that says what it shall run."""
    own = asdict(replace(placement, hosts=(), hostfile=None, card=None, warnings=(), node_rank=node_rank))
    task = {"package": package, "arguments": list(arguments), "placement": own}
    return json.dumps({**task, "environment": environment(), "folder": os.getcwd()})


def environment() -> dict[str, str]:
    """The variables of this machine that its ranks on other machines get, and those of the file that DeepSpeed's
    launcher reads for the same purpose: `.deepspeed_env` (or DS_ENV_FILE), here or in the home."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_TRAVELS) and name not in _STAYS}
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for file in (Path.home() / name, Path(name)):
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            key, equals, value = line.partition("=")
            if equals and not key.lstrip().startswith("#"):
                found[key.strip()] = value.strip()
    return found


# --- what hosts have --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def ask(hosts: tuple[str, ...], port: int, ranks: int) -> tuple[dict[str, Any], list[str]]:
    """What each host has for so many ranks, as `rlhf.pipeline.node` tells it, and a line for each that does not answer,
    has other versions than this machine, or does not see this folder. `port`: the first host is asked whether it is
    free."""
    question = json.dumps({"folder": os.getcwd(), "port": port, "ranks": ranks, "environment": environment()})
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        answers = dict(zip(hosts, pool.map(lambda host: _ask(host, question), hosts), strict=True))
    found = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    problems = [answer for answer in answers.values() if isinstance(answer, str)]
    problems += version_problems({"this machine": on_a_node(), **{host: found[host]["versions"] for host in found}})
    for host, answer in found.items():
        if not answer["sees"]:
            problems.append(
                f"{host} has no folder {os.getcwd()}: all nodes must see the folder of the run under one name"
            )
    first = found.get(hosts[0])
    if first is not None and not first["port_is_free"]:
        problems.append(f"--master-port {port} is in use on {hosts[0]}; give another one")
    return found, problems


def _ask(host: str, question: str) -> Mapping[str, Any] | str:
    try:
        done = subprocess.run(
            command(host, "ask"), input=question, capture_output=True, text=True, timeout=_ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{host} has not answered by ssh for {_ANSWER_SECONDS:.0f} s; try `ssh {host} true`"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == _SSH_FAILED:
        return f"{host} does not answer by ssh ({said}); `ssh {host} true` must work without a password"
    return (
        f"{host} cannot run {sys.executable} -m rlhf.pipeline.node in {ROOT} ({said}); "
        "install Python and this project under the same paths on all nodes"
    )


# --- how ranks there failed -------------------------------------------------------------------------------------------


def failure_line(failure: RankFailed) -> str:
    """A failure as a line for the other end of the ssh."""
    return _FAILED_MARK + json.dumps([failure.problems, failure.exit_code])


def read_failure(text: str) -> RankFailed | None:
    """The failure in a line of output, if there is one."""
    _, mark, body = text.partition(_FAILED_MARK)
    return RankFailed(*json.loads(body)) if mark else None


def lost(host: str, code: int, last: str) -> RankFailed:
    """The failure of a host that told none itself: `last` is the last line that came from it."""
    if code in (_SSH_FAILED, -9):
        return RankFailed([f"{host}: the connection by ssh was lost ({last or 'without a word'})"], EXIT_FAILURE)
    problem = f"{host}: ended with exit code {code} ({last or 'without a word'})"
    return RankFailed([problem], EXIT_USER if code == EXIT_USER else EXIT_FAILURE)
