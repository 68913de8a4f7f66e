"""Two machines on one: network namespaces that see each other by TCP alone, torchrun's rendezvous between them, gloo.

What they share is the disk, as the nodes of a cluster share a file system. Needs root, as `scripts/namespaces.sh` does.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingua_synth.config import dump_args
from lingua_synth.files import read_json
from lingua_synth.train.metrics import read_metrics

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "namespaces.sh"
STEPS = 60


def environment(number):
    names = {"NAMESPACES_PREFIX": f"lt{os.getpid()}-{number}", "NAMESPACES_NET": f"10.78.{os.getpid() % 250}"}
    return {**os.environ, **names, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "MAX_RESTARTS": "3"}


def script(env, *words):
    return subprocess.run([str(SCRIPT), *map(str, words)], env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def nodes(request):
    """The environment in which the script knows two nodes that are up."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed: no network namespaces")
    env = environment(abs(hash(request.node.name)) % 1000)
    up = script(env, "up", 2)
    try:
        if up.returncode:
            pytest.skip(f"no network namespaces here, they need root: {up.stderr.strip().splitlines()[-1]}")
        yield env
    finally:
        script(env, "down")


def begin(env, node, config, *words):
    """torchrun of one node, in the background."""
    command = [str(SCRIPT), "torchrun-on", str(node), "2", "1", "-m", "lingua_synth.train", f"config={config}", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def column(run_dir, key):
    return [record[key] for record in read_metrics(run_dir / "metrics.jsonl")]


def kill_all(process):
    """kill -9 of a node: torchrun and its ranks."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    for pid in [*(child for child, parent in parents.items() if parent == process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def longer(tmp_path, name):
    more = {"synth": {"tokens": STEPS * 256, "on_exhaustion": "repeat"}, "checkpoint": {"dump": {"every": 10}}}
    return more, tmp_path / name


def test_two_machines_train_as_one_to_the_bit_also_when_one_is_lost(train_args, tmp_path, nodes):
    more, alone = longer(tmp_path, "alone")
    dump_args(train_args(more, dump_dir=alone), tmp_path / "alone.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lingua_synth.train", f"config={tmp_path / 'alone.yaml'}"]
    done = subprocess.run(command, env=nodes, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = column(alone, "loss/mean")
    assert len(expected) == STEPS

    # The second machine dies on the way; the first waits for it, and both go on from the newest checkpoint.
    _, both = longer(tmp_path, "both")
    dump_args(train_args(more, dump_dir=both), tmp_path / "both.yaml")
    first, second = (begin(nodes, node, tmp_path / "both.yaml") for node in range(2))
    try:
        deadline = time.monotonic() + 120
        while not (found := read_metrics(both / "metrics.jsonl")) or len(found) < 15:
            assert first.poll() is None and time.monotonic() < deadline, "step 15 was not reached"
            time.sleep(0.01)
        kill_all(second)
        assert not (both / "result.json").exists()
        second = begin(nodes, 1, tmp_path / "both.yaml")
        said = [process.communicate(timeout=200)[1] for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), "\n".join(text[-3000:] for text in said)
    finally:
        for process in (first, second):
            if process.poll() is None:
                kill_all(process)
    assert "resumed from" in (both / "train.log").read_text()
    assert column(both, "loss/mean") == expected
    for key in ("optim/grad_norm", "data/tokens/natural", "optim/total_tokens"):
        assert column(both, key) == column(alone, key)
    rows = [read_json(run / "result.json") for run in (alone, both)]
    assert rows[0]["loss_macro"] == rows[1]["loss_macro"]


def test_a_machine_sees_the_other_by_its_address_alone(nodes):
    """What is tested above would be hollow if the namespaces were no machines of their own."""
    listen = "import socket; s = socket.create_server(('', 5001)); s.settimeout(20); c = s.accept()[0]; c.sendall(b'x')"
    server = subprocess.Popen([str(SCRIPT), "exec", "0", sys.executable, "-c", listen], env=nodes)
    net = nodes["NAMESPACES_NET"]
    ask = (
        "import socket, sys, time\n"
        "for _ in range(100):\n"
        "    try:\n"
        "        sys.exit(socket.create_connection((sys.argv[1], 5001), timeout=2).recv(1) != b'x')\n"
        "    except ConnectionRefusedError:\n"
        "        time.sleep(0.1)\n"
        "sys.exit(3)\n"
    )
    assert (
        script(nodes, "exec", 1, sys.executable, "-c", ask.replace("range(100)", "range(3)"), "127.0.0.1").returncode
        == 3
    )
    assert script(nodes, "exec", 1, sys.executable, "-c", ask, f"{net}.1").returncode == 0
    assert server.wait(timeout=20) == 0
