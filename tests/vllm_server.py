"""vLLM on a CPU for tests: its settings, and `vllm serve`'s own program on a free port of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

# Before vLLM is imported. In-process engine; one unpinned thread; 1 GiB of cache; nothing leaves the machine.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
SECONDS_TO_START = 300


def use_cpu_settings():
    """Put `SETTINGS` into this process's environment, and so into that of its children; what is set already stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def vllm_server(model, name, context, log):
    """Address of a server of the folder `model` under `name`, up when the block begins, gone when it ends.

    `log`: the file for what it says. The `vllm` script itself is not used: it looks for a distribution called vllm,
    and the build for CPUs is called otherwise; what it starts is the same module.
    """
    with socket.socket() as held:
        # Bound but never listening, so that nobody else is given the port before vLLM, which also sets SO_REUSEADDR.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_options(held, model, name, context)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while not _answers(f"{address}/models"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield address
        finally:
            # Its workers are processes of their own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _options(held, model, name, context):
    options = ["--host", "127.0.0.1", "--port", str(held.getsockname()[1])]
    options += ["--model", str(model), "--served-model-name", name, "--dtype", "float32", "--enforce-eager"]
    options += ["--no-enable-chunked-prefill", "--max-model-len", str(context)]
    options += ["--max-num-batched-tokens", str(max(context, 1024))]
    return [*options, "--gpu-memory-utilization", "0.3", "--enable-prompt-tokens-details"]


def _answers(url):
    with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False
