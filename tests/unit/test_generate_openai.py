"""The openai engine against a real server on 127.0.0.1 that refuses, stalls, lies and dies."""

import asyncio
import collections
import itertools
import json
import os
import random
import socket
import threading
import time

import pytest
from aiohttp import web

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, Generation, Request, Sampling, build_engine, generate, load_recipe, verify
from lingua_synth.generate.engines import openai
from lingua_synth.generate.engines.openai import OpenAIEngine

SAMPLING = Sampling(0.7, 0.95, 64)
KEY = "sk-secret-0123456789"
HALF_A_BODY = "half a body"


class Server:
    """A server in a thread. `answer(number, body)` gives the response to the n-th request, or a coroutine of it."""

    def __init__(self, answer=None, models=200):
        self.answer = answer or (lambda number, body: completion(body))
        self.models = models
        self.bodies = []
        self.headers = []
        self.paths = []
        self.times = []
        self.in_flight = self.most_in_flight = 0
        self._count = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *failure):
        self.stop()

    def stop(self):
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _start(self):
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{kind:.*}", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def _models(self, request):
        return web.json_response({"data": []}, status=self.models)

    async def _complete(self, request):
        self.paths.append(request.path)
        self.headers.append(request.headers)
        self.times.append(time.time())
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.answer(next(self._count), body)
            if answer == HALF_A_BODY:
                answer = web.StreamResponse(headers={"Content-Length": "999"})
                await answer.prepare(request)
                await answer.write(b'{"choices": ')
                request.transport.abort()
                return answer
            return await answer if asyncio.iscoroutine(answer) else answer
        finally:
            self.in_flight -= 1


def completion(body, **changes):
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    choice = {"finish_reason": "stop"}
    if "prompt" in body:
        choice["text"] = f"text of {prompt[:40]}"
    else:
        choice["message"] = {"role": "assistant", "content": f"answer to {prompt[:40]}"}
    content = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 60}}
    return web.json_response({**content, **changes})


def error(status, text="busy", **headers):
    return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})


def requests(n, prompt="chat"):
    for i in range(n):
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": f"number {i}"}]
        yield Request(f"k{i}", messages if prompt == "chat" else f"number {i}", SAMPLING, seed=1000 + i)


def run(servers, n=20, prompt="chat", **options):
    url = ",".join(server if isinstance(server, str) else server.url for server in servers)
    engine = OpenAIEngine("tiny", url, **{"max_in_flight": 8, **options})
    outcomes = list(engine.run(requests(n, prompt)))
    assert sorted(outcome.key for outcome in outcomes) == sorted(f"k{i}" for i in range(n)), "one outcome per request"
    return {outcome.key: outcome for outcome in outcomes}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses as in life, a twentieth as long."""
    monkeypatch.setattr(openai, "FIRST_PAUSE_S", 0.025)
    monkeypatch.setattr(openai, "FIRST_REST_S", 0.05)
    monkeypatch.setattr(openai, "LONGEST_PAUSE_S", 3.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_chat_is_sent_as_the_interface_says_and_read_back():
    with Server() as server:
        outcomes = run([server], 3)
    assert outcomes["k1"] == Generation("k1", "answer to number 1", 7, 60, "stop")
    body = next(body for body in server.bodies if body["seed"] == 1001)
    assert body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "number 1"}],
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 64,
        "seed": 1001,
    }
    assert set(server.paths) == {"/v1/chat/completions"}
    assert "Authorization" not in server.headers[0]


def test_a_text_prompt_goes_to_completions():
    with Server() as server:
        outcomes = run([server], 2, prompt="text")
    assert outcomes["k0"].text == "text of number 0"
    assert set(server.paths) == {"/v1/completions"}
    assert "messages" not in server.bodies[0]


def test_the_system_message_is_folded_on_request():
    with Server() as server:
        run([server], 1, fold_system=True)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "S\n\nnumber 0"}]


def test_the_window_is_filled_and_never_exceeded():
    async def slow(number, body):
        await asyncio.sleep(0.02)
        return completion(body)

    with Server(slow) as server:
        run([server], 60, max_in_flight=8)
    assert server.most_in_flight == 8


def test_requests_are_taken_only_as_there_is_room():
    taken = []

    def counted():
        for request in requests(100):
            taken.append(request.key)
            yield request

    with Server() as server:
        outcomes = OpenAIEngine("tiny", server.url, max_in_flight=4).run(counted())
        for received in range(1, 20):
            next(outcomes)
            assert len(taken) <= received + 4
        outcomes.close()


@pytest.mark.parametrize(
    "bad",
    [
        lambda: error(429),
        lambda: error(429, Retry_After="0"),
        lambda: error(500, "boom"),
        lambda: error(503),
        lambda: error(408),
        lambda: web.Response(text="<html>not JSON"),
        lambda: web.json_response({"choices": []}),
        lambda: web.json_response({"choices": [{"message": {"content": 5}}]}),
        lambda: web.json_response(["a", "list"]),
        lambda: HALF_A_BODY,
        lambda: web.Response(text="[" * 200_000),
        lambda: web.Response(body=b"\xff\xfe{"),
        lambda: web.Response(text="{}", headers={"Content-Encoding": "gzip"}),
        lambda: web.json_response({"choices": [{"message": "text"}]}),
    ],
    ids=[
        "429",
        "429 with Retry-After",
        "500",
        "503",
        "408",
        "garbage",
        "no choice",
        "a number",
        "a list",
        "half a body",
        "deep brackets",
        "no text at all",
        "not what its header says",
        "a message that is no object",
    ],
)
def test_what_may_pass_is_tried_again(bad):
    # Every third request is answered badly, whichever it is.
    with Server(lambda number, body: bad() if number % 3 == 0 else completion(body)) as server:
        outcomes = run([server], 12)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert len(server.bodies) > 12
    seeds = collections.Counter(body["seed"] for body in server.bodies)
    assert set(seeds) == {1000 + i for i in range(12)}, "a second attempt carries the same seed"


@pytest.mark.parametrize("status", [400, 404, 413, 422, 302])
def test_what_will_not_pass_is_a_failure_at_once(status):
    def answer(number, body):
        return error(status, "too long", Location="/elsewhere") if body["seed"] == 1002 else completion(body)

    with Server(answer) as server:
        outcomes = run([server], 5)
    assert isinstance(outcomes["k2"], Failure)
    assert outcomes["k2"].error == f"127.0.0.1:{server.port}: {status} too long"
    assert len(server.bodies) == 5
    assert sum(isinstance(outcome, Generation) for outcome in outcomes.values()) == 4


def test_a_template_without_a_system_role_is_explained():
    with Server(lambda n, b: error(400, "Conversation roles must alternate")) as server:
        outcomes = run([server], 1)
    assert outcomes["k0"].error.endswith("fold_system=true puts the system message into the user turn")


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "max_tokens=2048 cannot be greater than max_model_len=512.",
        "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
    ],
)
def test_what_is_too_long_for_the_context_is_said_with_what_to_change(said):
    with Server(lambda n, b: web.json_response({"error": {"message": said}}, status=400)) as server:
        outcomes = run([server], 1)
    assert said[:40] in outcomes["k0"].error and outcomes["k0"].error.endswith("the recipe's max_input_tokens")


def test_a_request_is_given_up_after_its_retries():
    def answer(number, body):
        return error(500, "always") if body["seed"] == 1000 else completion(body)

    with Server(answer) as server:
        outcomes = run([server], 10, max_retries=2)
    assert outcomes["k0"] == Failure("k0", f"given up after 3 attempts; the last: 127.0.0.1:{server.port}: 500 always")
    assert sum(body["seed"] == 1000 for body in server.bodies) == 3


def test_a_slow_answer_is_given_up_and_asked_for_again():
    async def answer(number, body):
        await asyncio.sleep(60 if number == 0 else 0)
        return completion(body)

    start = time.monotonic()
    with Server(answer) as server:
        outcomes = run([server], 4, timeout_s=1.0)
        assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
        assert len(server.bodies) >= 5
    assert time.monotonic() - start < 20


def test_retry_after_is_honoured():
    with Server(lambda number, body: error(429, Retry_After="1") if number == 0 else completion(body)) as server:
        run([server], 1)
    assert 0.99 <= server.times[1] - server.times[0] < 10


def test_a_server_that_asks_for_patience_is_left_alone_while_others_go_on():
    async def patient(number, body):
        await asyncio.sleep(0.02)
        return error(429, Retry_After="1") if number == 0 else completion(body)

    async def steady(number, body):
        await asyncio.sleep(0.02)
        return completion(body)

    with Server(patient) as one, Server(steady) as other:
        run([one, other], 160, max_in_flight=2)
    # The request that was under way beside the refused one had been sent before.
    assert not [moment for moment in one.times if 0.1 < moment - one.times[0] < 0.95]
    assert len(one.times) > 5


def test_retry_after_may_be_a_date():
    import email.utils

    later = int(time.time()) + 2
    date = email.utils.formatdate(later, usegmt=True)
    with Server(lambda number, body: error(503, Retry_After=date) if number == 0 else completion(body)) as server:
        run([server], 1)
    assert later - 0.01 <= server.times[1] < later + 10


def test_pauses_double_and_are_jittered(monkeypatch):
    engine = OpenAIEngine("tiny", "http://127.0.0.1:1/v1")
    client = openai._Client(engine, None)
    retry = openai._Retry("x")
    random.seed(0)
    for attempt in range(6):
        pauses = [client._pause_s(attempt, retry) for _ in range(200)]
        longest = min(3.0, 0.025 * 2**attempt)
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
        assert max(pauses) - min(pauses) > longest / 3
    client._loop.close()


def test_a_window_is_halved_once_for_what_was_under_way_and_grows_by_one_a_window():
    server = openai._Server("http://h/v1", 16)
    assert server.capacity(now=0.0) == 16
    # Sixteen requests sent at 1.0 are all refused: one halving.
    for moment in range(16):
        server.note_too_much(sent_at=1.0, now=2.0 + moment)
    assert server.window == 8
    server.note_too_much(sent_at=2.5, now=3.0)
    assert server.window == 4
    for expected in (5, 6, 7):
        for _ in range(expected - 1):
            server.note_answer()
        # n answers of 1/n each, n growing on the way: a little under one.
        assert expected - 0.15 < server.window <= expected
        server.window = expected
    for _ in range(1000):
        server.note_answer()
    assert server.window == 16
    for moment in range(20):
        server.note_too_much(sent_at=10.0 + moment, now=10.5 + moment)
    assert server.window == 1 and server.capacity(now=40.0) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_with_less_room_than_asked_for_is_not_overrun(status):
    """It takes 4 at a time and refuses more; 32 are allowed. With a window that stays, 230 to 290 are refused."""
    refused = 0

    def answer(number, body):
        nonlocal refused
        if server.in_flight > 4:
            refused += 1
            return error(status)
        return slow(body)

    async def slow(body):
        await asyncio.sleep(0.01)
        return completion(body)

    with Server(answer) as server:
        outcomes = run([server], 300, max_in_flight=32, max_retries=30)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert refused < 150


def test_a_server_that_never_answers_is_rested_and_tried_with_single_requests():
    async def never(number, body):
        await asyncio.sleep(60)

    async def steady(number, body):
        await asyncio.sleep(0.03)
        return completion(body)

    with Server(steady) as one, Server(never) as other:
        outcomes = run([one, other], 200, max_in_flight=4, timeout_s=0.4, max_retries=20)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert len(one.bodies) == 200 and 4 <= len(other.bodies) < 20
    assert other.most_in_flight == 4


def test_after_a_rest_one_request_asks_whether_the_server_is_well_again():
    server = openai._Server("http://h/v1", 8)
    server.num_failures, server.rested_until = openai.FAILURES_BEFORE_REST, 5.0
    assert server.capacity(now=4.9) == 0 and server.capacity(now=5.0) == 1
    server.in_flight = 1
    assert server.capacity(now=5.0) == 0
    server.note_answer()
    assert server.capacity(now=5.0) == 7


def test_whether_the_system_message_was_folded_decides_whose_run_it_is(tmp_path):
    documents = [Document("d", "A text.")]
    with Server() as server:
        engine = build_engine("openai", model="tiny", base_url=server.url)
        generate(documents, tmp_path, load_recipe("hq"), engine, progress=False)
        other = build_engine("openai", model="tiny", base_url=server.url, fold_system=True)
        with pytest.raises(ValueError, match=r"engine.system_role: 'sent' there, 'folded' now"):
            generate(documents, tmp_path, load_recipe("hq"), other, progress=False)


def test_a_dead_replica_does_not_stop_the_others():
    with Server() as alive, Server(lambda n, b: error(500, "broken")) as broken, Server() as killed:
        killed.answer = lambda number, body: threading.Thread(target=killed.stop).start() or error(500)
        outcomes = run([alive, broken, killed], 200, max_in_flight=4)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert len(alive.bodies) == 200
    # It was rested, and tried again with single requests.
    assert len(broken.bodies) < 30


def test_a_replica_that_recovers_is_used_again():
    async def answer(number, body):
        await asyncio.sleep(0.01)
        return error(503) if number < 5 else completion(body)

    async def steady(number, body):
        await asyncio.sleep(0.01)
        return completion(body)

    with Server(steady) as one, Server(answer) as other:
        outcomes = run([one, other], 150, max_in_flight=2)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert len(other.bodies) > 30


def test_all_servers_dying_ends_the_run_in_words():
    with Server() as server:
        server.answer = lambda n, b: (
            threading.Thread(target=server.stop).start() or error(500) if n == 3 else completion(b)
        )
        engine = OpenAIEngine("tiny", server.url, max_in_flight=2, max_retries=2)
        with pytest.raises(ValueError, match=rf"no server answers any more \(127.0.0.1:{server.port}\), after 3 rests"):
            list(engine.run(requests(20)))


def test_no_server_at_all_is_said_before_any_document_is_sent():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ValueError, match=r"no server answers: 127.0.0.1:\d+: .*Start it first, or correct base_url"):
        list(OpenAIEngine("tiny", url).run(requests(3)))


def test_one_of_two_servers_is_enough():
    with Server(models=404) as server:
        outcomes = run([server, "http://127.0.0.1:1/v1"], 6)
    assert len(server.bodies) == 6 and all(isinstance(one, Generation) for one in outcomes.values())


def test_the_key_is_sent_and_shown_nowhere(monkeypatch, tmp_path, capsys, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def answer(number, body):
        return error(400, f"your key {KEY} may not") if number == 1 else completion(body)

    with Server(answer) as server:
        engine = build_engine("openai", model="tiny", base_url=server.url)
        documents = [Document(f"d{i}", f"Text {i}.") for i in range(40)]
        generate(documents, tmp_path, load_recipe("hq"), engine, progress=False)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    shown = capsys.readouterr()
    assert b"your key *** may not" in written
    assert KEY.encode() not in written
    assert KEY not in shown.out + shown.err + caplog.text + repr(engine) + str(vars(engine))


@pytest.mark.parametrize(("key", "words"), [(None, "it is not set"), (KEY, "the value was refused")])
@pytest.mark.parametrize("where", ["models", "completions"])
def test_a_refused_key_ends_the_run_and_names_the_variable(key, words, where, monkeypatch):
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    server = Server(lambda n, b: error(401, f"no {key}"), models=401 if where == "models" else 200)
    with server, pytest.raises(ValueError) as refused:
        run([server], 3)
    assert "OPENAI_API_KEY" in str(refused.value) and words in str(refused.value)
    assert KEY not in str(refused.value)


def test_counts_that_a_server_does_not_report_are_marked_as_estimates():
    with Server(lambda number, body: completion(body, usage=None)) as server:
        outcome = run([server], 1)["k0"]
    assert outcome.tokens_are_estimates
    # "S" and "number 0" are 9 characters, the answer 18: 4 characters a token.
    assert (outcome.prompt_tokens, outcome.output_tokens) == (3, 5)


@pytest.mark.parametrize("usage", [[7, 60], "many", {"prompt_tokens": -1, "completion_tokens": 60}, {}, 5])
def test_counts_that_are_none_are_estimated_too(usage):
    with Server(lambda number, body: completion(body, usage=usage)) as server:
        outcome = run([server], 1)["k0"]
    assert outcome.tokens_are_estimates and (outcome.prompt_tokens, outcome.output_tokens) == (3, 5)


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00" * 4096, b"HTTP/1.1 200 OK\r\nA: " + b"a" * 99_999]
)
def test_what_speaks_no_http_is_no_server_and_one_that_does_is_enough(said):
    with socket.create_server(("127.0.0.1", 0)) as listening, Server() as server:
        stopped = threading.Event()

        def talk():
            while not stopped.is_set():
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(said)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        outcomes = run([url, server], 6)
        with pytest.raises(ValueError, match="no server answers"):
            run([url], 1)
        stopped.set()
        socket.create_connection(listening.getsockname()).close()
        thread.join(10)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())


def test_no_server_is_waited_for_longer_than_the_longest_pause(monkeypatch):
    monkeypatch.setattr(openai, "LONGEST_PAUSE_S", 0.2)
    # A year: what a proxy says during maintenance.
    bad = lambda number, body: error(503, Retry_After="31536000") if number < 12 else completion(body)  # noqa: E731
    start = time.monotonic()
    with Server(bad) as server:
        outcomes = run([server], 4, max_retries=20)
    assert all(isinstance(outcome, Generation) for outcome in outcomes.values())
    assert time.monotonic() - start < 30


def test_an_answer_without_content_is_an_empty_text():
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": None}
    with Server(lambda number, body: completion(body, choices=[choice])) as server:
        assert run([server], 1)["k0"] == Generation("k0", "", 7, 60, "stop")


def test_closing_leaves_no_request_and_no_thread_behind():
    async def never(number, body):
        await asyncio.sleep(30)

    before = threading.active_count()
    with Server(lambda number, body: completion(body) if number == 0 else never(number, body)) as server:
        outcomes = OpenAIEngine("tiny", server.url, max_in_flight=4).run(requests(9))
        next(outcomes)
        outcomes.close()
        assert threading.active_count() == before + 1  # the server's own
        deadline = time.monotonic() + 5
        while server.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.in_flight == 0


def test_a_whole_run_over_two_unruly_servers(tmp_path):
    def unruly(number, body):
        chance = random.Random(number).random()
        if chance < 0.1:
            return error(429, Retry_After="0.02")
        if chance < 0.2:
            return error(500)
        return web.Response(text="garbage") if chance < 0.25 else completion(body)

    documents = [Document(f"d{i}", f"Text {i}.") for i in range(300)]
    with Server(unruly) as one, Server(unruly) as other:
        engine = build_engine("openai", model="tiny", base_url=f"{one.url}, {other.url}/", max_retries=15)
        summary = generate(documents, tmp_path, "hq", engine, shard_size=50, progress=False)
    assert (summary.inputs, summary.records, summary.failed) == (300, 300, 0)
    assert verify(tmp_path) == []
    assert len(one.bodies) > 80 and len(other.bodies) > 80


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "http://h/v1"}, "needs model="),
        ({"model": "m"}, "needs base_url="),
        ({"model": "m", "base_url": "h:8000/v1"}, "is no address of a server"),
        ({"model": "m", "base_url": "ftp://h/v1"}, "is no address of a server"),
        ({"model": "m", "base_url": "http://h:99999/v1"}, "is no address of a server"),
        ({"model": "m", "base_url": "http://me:secret@h/v1"}, "must hold no user or password"),
        ({"model": "m", "base_url": "http://h/v1,http://h/v1/"}, "names a server twice"),
        ({"model": "m", "base_url": "http://h/v1", "max_in_flight": 0}, "max_in_flight must be at least 1, got 0"),
        ({"model": "m", "base_url": "http://h/v1", "timeout_s": 0}, "timeout_s must be positive"),
        (
            {"model": "m", "base_url": "http://h/v1", "batch_size": 3},
            "engine openai has no option batch_size; it has model",
        ),
    ],
)
def test_options_that_make_no_engine_are_refused_in_words(options, words):
    with pytest.raises(ValueError) as refused:
        build_engine("openai", **options)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_engine_needs_little_time_of_its_own():
    """Not a benchmark: only that no busy waiting has crept in while a server thinks."""

    async def slow(number, body):
        await asyncio.sleep(0.5)
        return completion(body)

    with Server(slow) as server:
        before = sum(os.times()[:2])
        run([server], 16, max_in_flight=16)
        assert sum(os.times()[:2]) - before < 0.4
    assert json.dumps(server.bodies[0])
