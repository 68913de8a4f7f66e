"""What generation costs beside the generator: `python benchmarks/generate.py`; see README.md for the columns.

The runner (prompts, journal, filters, shards) is driven by an engine that costs next to nothing, beside a bare loop
over the same engine that writes each text once; and by a server on this machine that answers after a fixed time, beside
a bare aiohttp client that sends the same requests and keeps nothing. Each case runs in a process of its own, in turn.

Needs the project and aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import ROOT, Page, Worker, goal_line, origin, public_arguments, ratio, spread, versions

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.generate import generate, load_recipe
from lingua_synth.generate.engine import Generation, Request
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.engines.openai import OpenAIEngine

RECIPE = "hq"
NUM_WORDS = 400
"""Words of an output, about the 550 tokens that rephrasing gives."""
TEXT = " ".join(f"Sentence {i} of the text has some more words in it." for i in range(NUM_WORDS // 10))
GOALS = {"records": 2000.0, "server": 0.95, "memory": 1.2}


def corpus(work: Path, count: int) -> Path:
    """A file of `count` documents of about 300 words; kept."""
    path = work / f"documents-{count}.jsonl"
    if not path.exists():
        write_documents(path, (Document(f"d{i}", f"Document {i}. {TEXT[:1800]}") for i in range(count)))
    return path


class QuickEngine(MockEngine):
    """The mock engine without the time that it takes to make a text up: one text, of varied words, for all."""

    def _outcome(self, request: Request, num_outcomes: int) -> Generation:
        return Generation(request.key, f"{request.key} {TEXT}", 450, NUM_WORDS, "stop")


# --- cases, each in its own process ---


def run_ours(work: Path, count: int) -> int:
    """The whole runner, journal and filters included, into a new folder."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        summary = generate(str(corpus(work, count)), out, RECIPE, QuickEngine(window=512), progress=False)
        return summary.records


def run_bare(work: Path, count: int) -> int:
    """The same engine and prompts; every text is written once, without a journal, filters or names."""
    engine, recipe = QuickEngine(window=512), load_recipe(RECIPE)
    (step,) = recipe.steps
    requests = (
        Request(document.id, recipe.render(step, document, None, engine.count_tokens), step.sampling, 0)
        for document in read_documents(str(corpus(work, count)))
    )
    done = 0
    with tempfile.TemporaryDirectory(dir=work) as out, open(Path(out) / "records.jsonl", "w", encoding="utf-8") as file:
        for outcome in engine.run(requests):
            assert isinstance(outcome, Generation), "the quick engine does not fail"
            file.write(json.dumps({"id": outcome.key, "text": outcome.text}) + "\n")
            done += 1
    return done


def run_server_ours(work: Path, count: int, port: int, window: int) -> int:
    """The runner with the `openai` engine."""
    engine = OpenAIEngine("mock", base_url=f"http://127.0.0.1:{port}/v1", max_in_flight=window)
    with tempfile.TemporaryDirectory(dir=work) as out:
        return generate(str(corpus(work, count)), out, RECIPE, engine, progress=False).records


def run_server_bare(work: Path, count: int, port: int, window: int) -> int:
    """aiohttp alone: the same requests, at most `window` under way, answers decoded and dropped."""
    import aiohttp

    recipe = load_recipe(RECIPE)
    (step,) = recipe.steps
    documents = read_documents(str(corpus(work, count)))

    async def client() -> int:
        done = 0
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def work_off() -> None:
                nonlocal done
                for document in documents:
                    body = {"model": "mock", "messages": recipe.render(step, document), "max_tokens": 2048, "seed": 0}
                    url = f"http://127.0.0.1:{port}/v1/chat/completions"
                    async with session.post(url, json=body) as response:
                        answer = json.loads(await response.read())
                        done += bool(answer["choices"][0]["message"]["content"])

            await asyncio.gather(*(work_off() for _ in range(window)))
        return done

    return asyncio.run(client())


def serve(latency_s: float) -> None:
    """An OpenAI-compatible server that answers every chat after `latency_s`; it says its port and runs until killed."""
    from aiohttp import web

    answer = json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 450, "completion_tokens": NUM_WORDS},
        }
    ).encode()

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency_s)
        return web.Response(body=answer, content_type="application/json")

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def run() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        print(json.dumps({"port": port}), flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def worker_main(what: str, described: str) -> int:
    """A case as a process: one measurement a question."""
    options = json.loads(described)
    if what == "server":
        serve(options["latency_s"])
        return 0
    work = Path(options.pop("work"))
    cases: dict[str, Callable[..., int]] = {
        "ours": run_ours,
        "bare": run_bare,
        "server-ours": run_server_ours,
        "server-bare": run_server_bare,
    }
    run = cases[what]
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            done = run(work, asked["count"], **options)
            found: dict[str, Any] = {
                "records": done,
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), flush=True)
    return 0


# --- sections ---


def process(what: str, **options: Any) -> Worker:
    """A case in a process of its own. Raises LeftOut."""
    return Worker(Path(__file__), ["--worker", what, json.dumps(options)])


def measure_alone(page: Page, goals: list[list[str]], work: Path, count: int, rounds: int) -> None:
    """The runner beside a bare loop, and its memory at four times the documents."""
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    cpu_rates: dict[str, list[float]] = {"bare": [], "ours": []}
    with process("bare", work=str(work)) as bare, process("ours", work=str(work)) as ours:
        for case in (bare, ours):
            case.ask("run", count=200)  # imports
        for _ in range(rounds):
            for name, case in (("bare", bare), ("ours", ours)):
                found = case.ask("run", count=count)
                assert found["records"] == count, "every document has a record"
                rates[name].append(count / found["wall_s"])
                cpu_rates[name].append(count / found["cpu_s"])
    with process("ours", work=str(work)) as small, process("ours", work=str(work)) as large:
        peaks = [one.ask("run", count=n)["peak_mb"] for one, n in ((small, count), (large, 4 * count))]
    page.text("## The runner alone")
    page.text(
        f"Recipe {RECIPE}, {count:,} documents of about 300 words, outputs of {NUM_WORDS} words from an engine that "
        f"costs nothing; one process, {rounds} rounds in turn: median (smallest-largest). The bare loop renders the "
        "same prompts and writes each text once; it keeps no journal, filters nothing and could not be resumed."
    )
    rows = [
        ["bare loop", spread(rates["bare"], 0), spread(cpu_rates["bare"], 0), "x 1", "-"],
        [
            "**lingua_synth**",
            spread(rates["ours"], 0),
            spread(cpu_rates["ours"], 0),
            f"x {ratio(cpu_rates['ours'], cpu_rates['bare']):.2f}",
            f"{peaks[0]:,.0f}, {peaks[1]:,.0f}",
        ],
    ]
    page.table(["", "records/s", "records/CPU-s", "CPU, of the bare loop", "peak MB, 1 x and 4 x the documents"], rows)
    rate = median(rates["ours"])
    goals.append(
        goal_line(
            "records a second, one process", f"{rate:,.0f}", f">= {GOALS['records']:,.0f}", rate >= GOALS["records"]
        )
    )
    growth = peaks[1] / peaks[0]
    goals.append(goal_line("memory at 4 x the documents", f"x {growth:.2f}", "constant", growth < GOALS["memory"]))


def measure_server(
    page: Page, goals: list[list[str]], work: Path, count: int, rounds: int, window: int, latency_s: float
) -> None:
    """The runner beside aiohttp alone, against one server."""
    rates: dict[str, list[float]] = {"server-bare": [], "server-ours": []}
    cpu_ms: dict[str, list[float]] = {"server-bare": [], "server-ours": []}
    with process("server", latency_s=latency_s) as server:
        options = {"work": str(work), "port": server.started["port"], "window": window}
        with process("server-bare", **options) as bare, process("server-ours", **options) as ours:
            for case in (bare, ours):
                case.ask("run", count=200)
            for _ in range(rounds):
                for name, case in (("server-bare", bare), ("server-ours", ours)):
                    found = case.ask("run", count=count)
                    assert found["records"] == count, "every request is answered"
                    rates[name].append(count / found["wall_s"])
                    cpu_ms[name].append(1e3 * found["cpu_s"] / count)
    page.text("## Against a server")
    page.text(
        f"A server on this machine that answers after {latency_s:g} s; {window} requests under way, so at most "
        f"{window / latency_s:,.0f} a second; {count:,} requests."
    )
    of_bare = ratio(rates["server-ours"], rates["server-bare"])
    page.table(
        ["", "requests/s", "CPU ms a request", "of aiohttp alone"],
        [
            ["aiohttp alone", spread(rates["server-bare"], 0), spread(cpu_ms["server-bare"], 2), "x 1"],
            [
                "**lingua_synth**, openai",
                spread(rates["server-ours"], 0),
                spread(cpu_ms["server-ours"], 2),
                f"x {of_bare:.3f}",
            ],
        ],
    )
    goals.append(
        goal_line("against aiohttp alone", f"x {of_bare:.3f}", f">= x {GOALS['server']}", of_bare >= GOALS["server"])
    )


# --- the command ---


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a mistake ends with a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="benchmarks/generate.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder of the documents; kept")
    parser.add_argument("--documents", type=int, default=10_000, help="documents of the runner alone")
    parser.add_argument("--requests", type=int, default=6_000, help="requests to the server")
    parser.add_argument("--window", type=int, default=256, help="requests under way at the server")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds in which the server answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    for name in ("documents", "requests", "window", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.latency < 0:
        parser.error(f"--latency must be at least 0, got {args.latency}")
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    if argv[:1] == ["--worker"]:
        return worker_main(*argv[1:])
    args = parse(argv)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    page = Page("Generation beside the generator")
    page.text(*origin(public_arguments(argv)), f"- {versions('aiohttp')}")
    start = time.perf_counter()
    goals: list[list[str]] = []
    measure_alone(page, goals, work, args.documents, args.rounds)
    measure_server(page, goals, work, args.requests, args.rounds, args.window, args.latency)
    page.text("## Goals")
    page.table(["", "goal", "measured", ""], goals)
    page.text(f"The run took {time.perf_counter() - start:,.0f} s.")
    if args.out:
        page.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
