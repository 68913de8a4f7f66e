"""datatrove's inference runner as a case of `generate.py`, in a process and an environment of its own.

    python peer_datatrove.py '{"port": 8000, "window": 256, "checkpoints": true}'     then a line of JSON a measurement

It sends the chats of a file, each line {"id", "messages"}, to the server on this machine, and writes the answers into a
new folder. Prompts are rendered beforehand, which this library does while it runs. With checkpoints it can be resumed
after a kill, as this library can; without, a killed task begins anew. Nothing of this project is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from answering import answer_all, measured, take_output


def send(path: str, out: str, count: int, port: int, window: int, checkpoints: bool) -> int:
    """Send the first `count` chats of `path`, at most `window` at a time; how many answers were written."""
    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    def documents() -> Iterator[Any]:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == count:
                    return
                row = json.loads(line)
                yield Document(text="", id=row["id"], metadata={"messages": row["messages"]})

    async def ask(document: Any, generate: Any) -> Any:
        return await generate({"messages": document.metadata["messages"], "max_tokens": 2048, "seed": 0})

    name = "${rank}_chunk_${chunk_index}.jsonl" if checkpoints else "${rank}.jsonl"
    runner = InferenceRunner(
        ask,
        InferenceConfig(
            server_type="endpoint",
            model_name_or_path="mock",
            endpoint_url=f"http://127.0.0.1:{port}",
            max_concurrent_generations=window,
        ),
        JsonlWriter(f"{out}/written", output_filename=name, compression=None),
        checkpoints_local_dir=f"{out}/checkpoints" if checkpoints else None,
        # This library's shard_size.
        records_per_chunk=1000,
    )
    runner.run(documents())
    written = 0
    for file in Path(out, "written").rglob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            (result,) = json.loads(line)["metadata"]["rollout_results"]
            written += bool(result["text"])
    return written


def main(described: str) -> int:
    """Answer measurements until the input ends."""
    options = json.loads(described)
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")
    say = take_output()
    say({"version": f"datatrove {metadata.version('datatrove')}"})

    def answer(_: str, work: str, chats: str, count: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=work) as out:
            return measured(lambda: send(chats, out, count, **options))

    answer_all(say, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
