"""One process at work in a run's folder: it claims shards, feeds the engine, journals, and makes shards whole.

    claim a shard -> its inputs through the steps (`graph`) -> engine -> journal -> last outcome there -> files -> next

The engine is fed from the next shard while the last outcomes of one are under way, and calls that became due come
before new inputs, so that what is begun gets finished. A kill costs what was inside the engine and the last tenth of
a second. SIGINT and SIGTERM let what is inside the engine come out first; a second one does not.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.documents import Document
from lingua_synth.files import read_json, write_json
from lingua_synth.generate import store
from lingua_synth.generate.accounting import Meter
from lingua_synth.generate.engine import Engine, Failure, Generation, Outcome, Prompt, Request, whole_characters
from lingua_synth.generate.filters import FilterContext, Verdict, judge
from lingua_synth.generate.graph import Call, Ended, Graph, Progress
from lingua_synth.generate.journal import Journal
from lingua_synth.generate.plan import Input, InputPlan
from lingua_synth.generate.recipe import Recipe
from lingua_synth.leases import Leases

JOURNALS = "journal"
LEASES = "leases"
DUPLICATE_ID = "duplicate_id"
REQUESTS_BEFORE_JUDGING_FAILURES = 100
NUM_ERRORS_SHOWN = 3
LOOK_EVERY_S = 5.0
"""Seconds between looks at what other processes have finished, and for shards that they left."""
LISTING_SHARE = 50
"""Listings of the run's folder take at most one part in so many of a process's time: the folder of a million shards has
four million names."""
CLAIMS_LOOKED_AT = 64
"""Claims of others that one look asks about, drawn where there are more: a thousand processes hold a thousand."""
MOST_STALE = 16
"""Shards in a row that turn out to be finished before the next ones are tried."""
COUNTED = "counted.json"
"""How far the kept tokens of a run with a budget have been added up, for the others."""
COUNTED_EVERY = 256
_OUTCOME_FIELDS = tuple(field.name for field in dataclasses.fields(Generation) if field.name != "key")


class Stopped(SystemExit):
    """The run was told to stop and has put down what was under way; the same call goes on from there."""


@dataclass(frozen=True)
class Settings:
    """What a worker works by."""

    recipe: Recipe
    engine: Engine
    seed: int
    max_output_tokens: int | None
    max_failure_rate: float
    document_format: str


@dataclass
class _Row:
    """An input of an open shard: how far it is, and what has come of it so far."""

    progress: Progress
    documents: list[tuple[tuple[int, int], Document]] = field(default_factory=list)
    filtered: list[tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=list)
    failed: list[tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=list)
    steps: list[tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=list)


@dataclass
class _OpenShard:
    """A shard of ours that is not whole."""

    index: int
    claim: int
    known: dict[str, dict[str, Any]]
    """Journal entries of earlier claims, by row and call, not used yet."""
    num_missing: int
    """Inputs that are not done."""
    rows: dict[int, _Row] = field(default_factory=dict)
    source_documents: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    num_succeeded: int = 0


@dataclass(frozen=True)
class _Due:
    """A call that can be handed to the engine."""

    shard: _OpenShard
    row: int
    call: Call


class Worker:
    """Works on the shards of `plan` in `folder` until nothing is left for it.

    `shards`: infos of the shards known to be whole, by number; grows as it and others finish more.
    """

    def __init__(
        self, folder: Path, plan: InputPlan, settings: Settings, created: str, progress: bool, lease_s: float
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._settings = settings
        self._recipe = settings.recipe
        self._created = created
        self._progress = progress
        self._lease_s = lease_s
        engine = settings.engine
        self._graph = Graph(settings.recipe, settings.seed, engine.count_tokens, engine.context_tokens)
        self._order = {step.name: number for number, step in enumerate(settings.recipe.steps)}
        # The same in every record, so computed once.
        self._prompt_sha256 = {step.name: step.prompt_sha256 for step in settings.recipe.steps}
        self._templates = {step.name: f"{step.system}\n{step.user}" for step in settings.recipe.steps}
        self._sampling = {step.name: dataclasses.asdict(step.sampling) for step in settings.recipe.steps}
        self.shards: dict[int, dict[str, Any]] = {}
        self._whole: set[int] = set()
        self._num_whole = 0
        """Shards without a gap from 0."""
        self._whole_tokens = 0
        """Kept by these."""
        self._looked = self._listed = -math.inf
        """When others were looked for, and the folder was listed last; on the clock of time.monotonic."""
        self._listing_s = 0.0
        """Seconds that the last listing took."""
        self._counted = 0
        """Shards that the others have been told of."""
        self._has_manifest = False
        self._found_none = -LOOK_EVERY_S
        """When no shard was free; on the clock of time.monotonic."""
        self._open: dict[int, _OpenShard] = {}
        self._due: collections.deque[_Due] = collections.deque()
        self._under_way: dict[str, tuple[_Due, Prompt]] = {}
        """What the engine holds; the prompts are kept for filters that read them."""
        self._inputs: Iterator[tuple[_OpenShard, Input]] = iter(())
        self._num_outcomes = 0
        self._num_failures = 0
        self._first_errors: list[str] = []
        self._random = random.Random()
        self._signal = 0

    # --- the whole ---

    def execute(self) -> None:
        """Work. Raises `Stopped` after a signal, ValueError when too much fails, OSError when a write does."""
        self._look()
        with (
            Leases(self._folder / LEASES, self._lease_s) as self._leases,
            contextlib.closing(Journal(self._folder / JOURNALS)) as self._journal,
            self._bar() as self.bar,
            self._signals(),
        ):
            engine = self._settings.engine
            self._meter = Meter(self._folder, self._leases.worker, engine.name, engine.num_gpus)
            try:
                requests = self._requests()
                # An engine that loses requests ends early; what is left is asked of it anew.
                while (first := next(requests, None)) is not None:
                    self._feed(itertools.chain([first], requests))
                self._list()  # whoever leaves last is to see that all is done
                self._count_whole()
            finally:
                for shard in list(self._open):
                    self._journal.leave(shard)
                self._meter.write()
        if self._signal:
            raise Stopped(128 + self._signal)

    @property
    def is_enough(self) -> bool:
        """Whether the shards without a gap from 0 hold the tokens asked for, the last of them being needed."""
        budget = self._settings.max_output_tokens
        return budget is not None and self._whole_tokens >= budget

    @property
    def last_shard(self) -> int | None:
        """The last shard of the result, None while it is not whole."""
        if self.is_enough or self._num_whole == self._plan.num_shards:
            return self._num_whole - 1
        return None

    def _feed(self, requests: Iterator[Request | None]) -> None:
        self._meter.first_request()
        with contextlib.closing(self._settings.engine.run(requests)) as outcomes:
            for outcome in self._meter.waiting(outcomes):
                self._take(outcome)
                if self.is_enough:
                    return
        for key in list(self._under_way):
            self._take(Failure(key, f"engine {self._settings.engine.name} returned nothing for this request"))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the taking of new work; the second does what it always does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: Any) -> None:
            self._signal = number
            self.bar.write("finishing what is under way; again to stop at once")
            for one, handler in before.items():
                signal.signal(one, handler)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- what others have done ---

    def _look(self) -> None:
        """See whether others have ended the run; list which shards are whole where that was not done lately."""
        self._looked = time.monotonic()
        self._has_manifest = (self._folder / store.MANIFEST).exists()
        if self._looked - self._listed >= max(LOOK_EVERY_S, LISTING_SHARE * self._listing_s):
            self._list()
        self._count_whole()

    def _list(self) -> None:
        started = time.monotonic()
        self._whole = store.whole_shards(self._folder)
        self._listed = time.monotonic()
        self._listing_s = self._listed - started

    def _count_whole(self) -> None:
        """Follow the shards that are whole without a gap, and with a budget their tokens, from where anybody came."""
        has_budget = self._settings.max_output_tokens is not None
        if has_budget:
            self._jump()
        while self._num_whole < self._plan.num_shards and not self.is_enough:
            # The budget's end is not to wait for the next listing.
            if self._num_whole not in self._whole and not (has_budget and self._is_whole(self._num_whole)):
                break
            own = self.shards.get(self._num_whole)
            if own is not None or has_budget:
                content = own or store.read_counts(self._folder, self._num_whole)
                self._whole_tokens += content["output_tokens"]
            self._num_whole += 1
        if has_budget and self._num_whole >= self._counted + COUNTED_EVERY:
            self._counted = self._num_whole
            write_json(self._folder / JOURNALS / COUNTED, [self._num_whole, self._whole_tokens])

    def _jump(self) -> None:
        """Go on counting where another process has come to, if all shards before are there still."""
        try:
            num_whole, tokens = read_json(self._folder / JOURNALS / COUNTED)
        except ValueError:  # nobody has come far
            return
        self._counted = max(self._counted, num_whole)
        if num_whole > self._num_whole and self._whole.issuperset(range(self._num_whole, num_whole)):
            self._num_whole, self._whole_tokens = num_whole, tokens

    def _is_whole(self, shard: int) -> bool:
        """Whether a shard is whole; asks for its one file."""
        if shard not in self._whole and (self._folder / store.shard_name(shard)).exists():
            self._whole.add(shard)
        return shard in self._whole

    @property
    def _is_over(self) -> bool:
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._look()
        return bool(self._signal) or self.is_enough or self._has_manifest

    # --- from shards to requests ---

    def _requests(self) -> Iterator[Request | None]:
        """Requests as the engine has room for them; None while everything waits for outcomes."""
        while not self._is_over:
            if self._due:
                yield self._request(self._due.popleft())
                continue
            entry = next(self._inputs, None)
            if entry is not None:
                self._begin(*entry)
            elif not self._open_next():
                if not self._under_way:
                    return
                yield None

    def _open_next(self) -> bool:
        """Claim the next shard that nobody works on; False if there is none now."""
        # The engine asks at every step of its own, and every look lists the folder and the others' leases.
        if self._under_way and time.monotonic() - self._found_none < LOOK_EVERY_S:
            return False
        for shard in self._candidates():
            if self._is_whole(shard):  # since the last listing
                continue
            name = f"{shard:05d}"
            claim = self._leases.claim(name)
            if claim is None:
                continue
            if self._is_whole(shard):  # finished a moment ago
                self._leases.finish(name)
                continue
            entries = self._journal.entries(shard, self._leases.earlier_claims(name))
            known: dict[str, dict[str, Any]] = {}
            for entry in entries:
                known.setdefault(entry["call"], entry)
            self._journal.open(shard, claim)
            opened = _OpenShard(shard, claim, known, self._plan.size(shard))
            self._open[shard] = opened
            self._inputs = ((opened, one) for one in self._plan.read(shard))
            return True
        self._found_none = time.monotonic()
        return False

    def _candidates(self) -> Iterator[int]:
        """Shards that may be free, in order; where others are at work, the next few in any order."""
        self._look()
        while True:
            num_known = len(self._whole)
            yield from self._free_shards()
            if len(self._whole) == num_known:
                return
            self._list()  # what was known was old, and shards may have been passed over
            self._count_whole()

    def _free_shards(self) -> Iterator[int]:
        """As `_candidates`, by what is known; leaves a stretch of which the first `MOST_STALE` are whole by now."""
        num_workers, claimed = self._leases.claimed()
        at_once = 2 * (num_workers - 1) + 1
        asked = [name for name in claimed if name.isdigit() and int(name) not in self._open]
        asked = self._random.sample(asked, min(len(asked), CLAIMS_LOOKED_AT))
        left_behind = {name for name in asked if not self._leases.is_held(name)}
        missing = (
            shard
            for shard in range(self._num_whole, self._plan.num_shards)
            if shard not in self._whole and shard not in self._open
        )
        free = (s for s in missing if (name := f"{s:05d}") not in claimed or name in left_behind)
        while stretch := list(itertools.islice(free, at_once)):
            if num_workers > 1:
                self._random.shuffle(stretch)
            num_stale = 0
            for shard in stretch:
                yield shard
                num_stale = num_stale + 1 if shard in self._whole else 0
                if num_stale == MOST_STALE:
                    break

    def _begin(self, shard: _OpenShard, one: Input) -> None:
        sample = self._plan.sample(shard.index)
        shard.source_documents += sample == 0
        position = shard.index % self._plan.shards_per_sample * self._plan.shard_size + one.row
        if one.is_duplicate:
            reason = "a document earlier in the input has this id"
            dropped = {"source_id": one.document.id, "sample": sample, "filter": DUPLICATE_ID, "reason": reason}
            row = _Row(Progress(one.document, sample, position, {}))
            row.filtered.append(((0, 0), dropped))
            shard.rows[one.row] = row
            self._done(shard)
            return
        progress, calls = self._graph.begin(one.document, sample, position)
        shard.rows[one.row] = _Row(progress)
        self._make_due(shard, one.row, calls)

    def _make_due(self, shard: _OpenShard, row: int, calls: list[Call]) -> None:
        """Queue calls, or settle them at once with what a journal knows of them."""
        for call in calls:
            known = shard.known.pop(f"{row}.{call.key}", None)
            if known is None:
                self._due.append(_Due(shard, row, call))
            else:
                self._settle(_Due(shard, row, call), known)

    def _request(self, due: _Due) -> Request:
        progress, call = due.shard.rows[due.row].progress, due.call
        seed = self._call_seed(progress, call)
        key = self._record_id(progress, call) + (f"-{call.attempt}" if call.attempt else "")
        prompt = self._graph.prompt(progress, call, seed)
        self._under_way[key] = due, prompt
        return Request(key, prompt, call.step.sampling, seed, group=due.shard.index)

    def _call_seed(self, progress: Progress, call: Call) -> int:
        return store.request_seed(
            self._settings.seed,
            progress.document.id,
            self._recipe,
            call.step,
            progress.sample,
            call.item,
            call.attempt,
        )

    def _record_id(self, progress: Progress, call: Call) -> str:
        return store.record_id(progress.document.id, self._recipe, call.step, progress.sample, call.item)

    # --- from outcomes to files ---

    def _take(self, outcome: Outcome) -> None:
        assert outcome.key in self._under_way, f"the engine returned {outcome.key}, which is not under way"
        due, prompt = self._under_way.pop(outcome.key)
        self._num_outcomes += 1
        if isinstance(outcome, Failure):
            # Not journaled: what failed before a kill is tried again.
            self._count_failure(outcome)
            self._settle(due, {"error": whole_characters(outcome.error)})
            return
        entry = {name: getattr(outcome, name) for name in _OUTCOME_FIELDS}
        entry["text"] = whole_characters(outcome.text)
        self._journal.append(due.shard.index, {"call": f"{due.row}.{due.call.key}", **entry})
        self._settle(due, entry, prompt)

    def _settle(self, due: _Due, entry: Mapping[str, Any], prompt: Prompt | None = None) -> None:
        """What became of a call, by what the engine, now (then `prompt` is known) or before a kill, has said."""
        shard, call = due.shard, due.call
        row = shard.rows[due.row]
        progress = row.progress
        if "error" in entry:
            self._graph.fail(progress)
            calls: list[Call] = []
            row.failed.append((self._place(call), self._failed_row(progress, call, entry["error"])))
        else:
            shard.prompt_tokens += entry["prompt_tokens"]
            shard.generated_tokens += entry["output_tokens"]
            shard.num_succeeded += 1
            calls = self._judge(row, call, entry, prompt)
        self._make_due(shard, due.row, calls)
        if not calls and progress.num_due == 0:
            self._done(shard)

    def _judge(self, row: _Row, call: Call, entry: Mapping[str, Any], prompt: Prompt | None) -> list[Call]:
        """Filters and gate on a text; the calls that it makes due."""
        progress, step = row.progress, call.step
        generation = Generation("", **{key: value for key, value in entry.items() if key != "call"})

        def render() -> Prompt:
            return self._graph.prompt(progress, call, self._call_seed(progress, call)) if prompt is None else prompt

        context = FilterContext(progress.document, generation, self._templates[step.name], render)
        verdict = judge(entry["text"].strip(), context, step.filters)
        text = verdict.text
        found = step.parsed(text)
        after_gate = self._graph.retry(progress, call, found)
        if isinstance(after_gate, Call):
            return [after_gate]
        synth = self._provenance(progress, call, generation)
        if verdict.stripped:
            synth["stripped"] = verdict.stripped
        ended: Ended | None = after_gate
        if ended is None and verdict.dropped_by is not None:
            ended = self._graph.drop(progress, verdict)
        identity = self._record_id(progress, call)
        place = self._place(call)
        if ended is not None:
            row.filtered.append((place, self._filtered_row(identity, text, synth, ended, verdict)))
            return []
        calls = self._graph.go_on(progress, call, text, found)
        meta = {"synth": {**synth, "flags": verdict.reasons}}
        fields = self._graph.fields(progress, call.item)
        if fields:
            meta["synth"]["fields"] = fields
        if step.emit:
            row.documents.append((place, Document(identity, self._graph.record_text(progress, call), meta)))
        else:
            row.steps.append((place, {"id": identity, "text": text, "meta": meta, "items": len(found.items)}))
        return calls

    def _place(self, call: Call) -> tuple[int, int]:
        """Where a text stands among those of its input: by item, then by step."""
        return call.item or 0, self._order[call.step.name]

    @staticmethod
    def _filtered_row(
        identity: str, text: str, synth: Mapping[str, Any], ended: Ended, verdict: Verdict
    ) -> dict[str, Any]:
        flags = {name: reason for name, reason in verdict.reasons.items() if name != ended.name}
        meta = {"synth": {**synth, "flags": flags}}
        return {"id": identity, "text": text, "meta": meta, "filter": ended.name, "reason": ended.reason}

    def _failed_row(self, progress: Progress, call: Call, error: str) -> dict[str, Any]:
        item = {} if call.item is None else {"item": call.item}
        return {
            "id": self._record_id(progress, call),
            "source_id": progress.document.id,
            "sample": progress.sample,
            "step": call.step.name,
            **item,
            "seed": self._call_seed(progress, call),
            "error": error,
        }

    def _provenance(self, progress: Progress, call: Call, generation: Generation) -> dict[str, Any]:
        engine, step = self._settings.engine, call.step
        parents = {
            name: store.record_id(progress.document.id, self._recipe, self._recipe.step(name), progress.sample, item)
            for name in step.after
            for item in [call.item if (name, call.item) in progress.texts else None]
        }
        optional: dict[str, Any] = {}
        if generation.tokens_are_estimates:
            optional["tokens_are_estimates"] = True
        if generation.cached_tokens:
            optional["cached_tokens"] = generation.cached_tokens
        if call.item is not None:
            optional["item"] = call.item
        if call.attempt:
            optional["attempt"] = call.attempt
        if parents:
            optional["parents"] = parents
        if progress.variables:
            optional["variables"] = dict(progress.variables)
        return {
            "recipe": self._recipe.name,
            "recipe_version": self._recipe.version,
            "prompt_sha256": self._prompt_sha256[step.name],
            "step": step.name,
            "sample": progress.sample,
            "source_id": progress.document.id,
            "audience": progress.variables.get("audience"),
            "generator": engine.name,
            "generator_revision": engine.revision,
            "sampling": {**self._sampling[step.name], "seed": self._call_seed(progress, call)},
            "prompt_tokens": generation.prompt_tokens,
            "output_tokens": generation.output_tokens,
            **optional,
            "finish_reason": generation.finish_reason,
            "created": self._created,
        }

    def _count_failure(self, failure: Failure) -> None:
        self._num_failures += 1
        if len(self._first_errors) < NUM_ERRORS_SHOWN and failure.error not in self._first_errors:
            self._first_errors.append(failure.error)
        rate = self._settings.max_failure_rate
        if self._num_outcomes >= REQUESTS_BEFORE_JUDGING_FAILURES and self._num_failures > rate * self._num_outcomes:
            raise ValueError(
                f"{self._num_failures:,} of {self._num_outcomes:,} requests failed, more than max_failure_rate="
                f"{rate:g}. {self._errors()}"
            )

    def _errors(self) -> str:
        return f"First errors: {' | '.join(self._first_errors)}. What is finished is kept; run again to go on"

    def _done(self, shard: _OpenShard) -> None:
        """An input of `shard` is done; write the shard when it was the last."""
        shard.num_missing -= 1
        self.bar.update(1)
        if shard.num_missing == 0:
            self._write(shard)

    def _write(self, shard: _OpenShard) -> None:
        nothing_succeeded = self._num_failures == self._num_outcomes and not shard.num_succeeded and not self._whole
        outcome = store.ShardOutcome()
        for number in range(len(shard.rows)):
            row = shard.rows[number]
            for kind in store.KINDS:
                ordered = sorted(getattr(row, kind), key=lambda entry: entry[0])
                getattr(outcome, kind).extend(entry for _, entry in ordered)
        if outcome.failed and nothing_succeeded and self._settings.max_failure_rate < 1:
            raise ValueError(f"all of {self._num_failures:,} requests failed. {self._errors()}")
        info = {
            "inputs": len(shard.rows),
            "source_documents": shard.source_documents,
            "prompt_tokens": shard.prompt_tokens,
            "generated_tokens": shard.generated_tokens,
        }
        del self._open[shard.index]
        name = f"{shard.index:05d}"
        if self._leases.holds(name):
            written = store.write_shard(
                self._folder, shard.index, shard.claim, outcome, info, self._settings.document_format
            )
            if written is not None:
                self.shards[shard.index] = written
            self._whole.add(shard.index)
            self._journal.finish(shard.index)
            self._leases.finish(name)
        else:  # we were stopped for longer than a lease, and another process has taken over
            self._journal.leave(shard.index)
        self._count_whole()
        usage = self._meter.usage
        rate = usage.generated_tokens / max(usage.busy_s + usage.idle_s, 1e-9)
        shown = f"{rate:,.0f} tokens/s written, {self._whole_tokens:,} tokens kept"
        if usage.cached_tokens:
            shown += f", {usage.cached_tokens / max(1, usage.prompt_tokens):.0%} of the prompts cached"
        self.bar.set_postfix_str(shown, refresh=False)

    def _bar(self) -> Any:
        from tqdm import tqdm

        done = sum(self._plan.size(shard) for shard in self._whole if shard < self._plan.num_shards)
        return tqdm(
            total=self._plan.num_inputs,
            initial=done,
            unit=" inputs",
            desc="generating",
            disable=not self._progress,
            mininterval=0.5,
        )
