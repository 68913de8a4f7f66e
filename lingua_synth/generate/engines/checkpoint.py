"""The engine for models trained by this library: static batches with a cache of keys and values, on a CPU or one GPU.

    requests of one group -> sorted by prompt length -> batches -> prompts cut to the batch's shortest -> read at once
        -> one token for every row, again and again -> rows that wrote EOS are taken out -> texts

Rows of a batch stand at the same position, which keeps every step a dense product; that is why prompts are cut to
one length. Each batch has one random generator, seeded from the seeds of its requests, as one per row would cost more
than the model. So the same requests in the same order and batch size give the same text, and another batch gives
another.

When the model's context is full, the last quarter of it is read again as a new beginning and the text goes on, so
`max_tokens` may be longer than the context.

On a CPU each batch runs on one thread, and as many batches at a time as torch has threads (OMP_NUM_THREADS): small
models are faster that way, and the text does not depend on the number of cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.files import sha256_json
from lingua_synth.generate.engine import Failure, Generation, Outcome, Request, Sampling
from lingua_synth.generate.engines.batches import Encoded, batch_by_length

if TYPE_CHECKING:
    import torch

# Finished rows are looked for this often, in tokens: a look costs about as much as a small layer.
STEPS_BETWEEN_LOOKS = 4
# When the context is full, 1/4 of it is read again: one token read for three written. With 1/2 it would be one for one.
CONTEXT_KEPT = 4
DTYPES = ("fp32", "bf16")


class CheckpointEngine:
    """Samples from a run folder's newest checkpoint, or from one checkpoint folder. Takes text prompts only.

    `batch_size`: rows sampled together. `device`: cpu or cuda. `dtype`: fp32 or bf16; default fp32 on a CPU, bf16 else.
    A prompt longer than half of the model's context is cut to its beginning of that length.
    Raises ValueError for a folder without a checkpoint, a device that is not there, a vocabulary that is not the
    model's.
    """

    prompt_kinds = ("text",)
    context_tokens = None

    def __init__(
        self, model: str = "", *, device: str = "cpu", dtype: str | None = None, batch_size: int = 256
    ) -> None:
        if not model:
            raise ValueError("engine checkpoint needs model=, the folder of a run or of one checkpoint")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype is {' or '.join(DTYPES)}; got {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        import torch

        from lingua_synth.model import load_checkpoint
        from lingua_synth.tokens import build_tokenizer

        try:
            self._device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device is cpu or cuda; got {device!r}") from None
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device}, but PyTorch sees no GPU here; use device=cpu")
        compute = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self._model, self._args, tokenizer = load_checkpoint(model, device=self._device, dtype=compute)
        self._tokenizer = build_tokenizer(tokenizer["name"], tokenizer["path"])
        if self._tokenizer.n_words > self._args.vocab_size:
            raise ValueError(
                f"the model in {model} has {self._args.vocab_size:,} words and its tokenizer {tokenizer['name']} "
                f"{tokenizer['path'] or ''} has {self._tokenizer.n_words:,}; the file is not that of its training"
            )
        folder = Path(model).resolve()
        in_run = folder.parent.name == "checkpoints"
        self.name = "checkpoint:" + (f"{folder.parents[1].name}@{folder.name}" if in_run else folder.name)
        self.revision = sha256_json([_weights_sha256(self._model), self._tokenizer.sha256])[:16]
        # The matrices once; the layers would otherwise cast them at every step. Norms compute in fp32 anyway.
        for parameter in self._model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(self._model.compute_dtype)
        self._context = self._args.max_seqlen
        self._batch_size = batch_size

    def count_tokens(self, text: str) -> int | None:
        """Length of `text` in the model's tokens, without BOS."""
        return len(self._tokenizer.encode(text))

    @property
    def num_gpus(self) -> int:
        """1 on a GPU, 0 on a CPU."""
        return int(self._device.type == "cuda")

    def description(self) -> dict[str, Any]:
        """Version of PyTorch, device, number format."""
        import torch

        dtype = str(self._model.compute_dtype).removeprefix("torch.")
        return {"torch": torch.__version__, "device": self._device.type, "dtype": dtype}

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """Sample batch by batch. Results come when their batch is finished; closing stops the batches at work."""
        import torch

        num_workers = torch.get_num_threads() if self._device.type == "cpu" else 1
        stop = threading.Event()
        with _one_thread_each(), concurrent.futures.ThreadPoolExecutor(num_workers, "sampling") as pool:
            batches = batch_by_length(requests, self._encode, self._batch_size)
            running: set[concurrent.futures.Future[list[Outcome]]] = set()
            try:
                while True:
                    # One more than can run, so that a worker finds its next batch waiting.
                    for batch in itertools.islice(batches, num_workers + 1 - len(running)):
                        if batch is None:
                            break
                        running.add(pool.submit(self._sample, batch, stop))
                    if not running:
                        return
                    done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            finally:
                stop.set()
                for future in running:
                    future.cancel()

    def _encode(self, request: Request) -> list[int]:
        assert isinstance(request.prompt, str), "the runner asks prompt_kinds before it sends a chat"
        ids = self._tokenizer.encode(request.prompt, add_bos=self._tokenizer.bos_id >= 0)
        return ids[: max(1, self._context // 2)]

    def _sample(self, batch: Sequence[Encoded], stop: threading.Event) -> list[Outcome]:
        import torch

        requests = [request for request, ids in batch if ids]
        outcomes: list[Outcome] = [
            Failure(request.key, "the prompt is empty and the vocabulary has no BOS to begin with")
            for request, ids in batch
            if not ids
        ]
        if not requests:
            return outcomes
        shortest = min(len(ids) for _, ids in batch if ids)
        prompts = torch.tensor([ids[:shortest] for _, ids in batch if ids], device=self._device)
        seed = int(sha256_json([request.seed for request in requests])[:15], 16)
        sampling = requests[0].sampling
        try:
            outputs = self._generate(prompts, sampling, torch.Generator(self._device).manual_seed(seed), stop)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"out of memory on {self._device} with batch_size {self._batch_size} and rows of "
                f"{shortest} + {sampling.max_tokens} tokens; lower batch_size or max_tokens"
            ) from None
        return [*outcomes, *self._read(requests, shortest, outputs.tolist())]

    def _generate(
        self, prompts: torch.Tensor, sampling: Sampling, generator: torch.Generator, stop: threading.Event
    ) -> torch.Tensor:
        """Sample continuations of `prompts` [B, T]: ids [B, max_tokens], EOS (or -1) where a row has ended before."""
        import torch

        from lingua_synth.model import KVCache

        model, context, eos = self._model, self._context, self._tokenizer.eos_id
        batch_size, length = prompts.shape
        end = length + sampling.max_tokens
        with torch.inference_mode():
            outputs = torch.full((batch_size, sampling.max_tokens), eos, dtype=torch.int64, device=self._device)
            rows = torch.arange(batch_size, device=self._device)
            ids = torch.empty(batch_size, end, dtype=torch.int64, device=self._device)
            ids[:, :length] = prompts
            finished = torch.zeros(batch_size, dtype=torch.bool, device=self._device)
            cache = KVCache(self._args, batch_size, min(context, end), self._device, model.compute_dtype)
            position, unread = 0, length
            while length < end:
                hidden = model.hidden(ids[:, length - unread : length], cache, position)
                logits = self._allowed(model.output(hidden[:, -1]))
                position, unread = position + unread, 1
                ids[:, length] = sample_token(logits, sampling, generator)
                finished |= ids[:, length] == eos
                length += 1
                if position == context:
                    position, unread = 0, max(1, context // CONTEXT_KEPT)
                if length % STEPS_BETWEEN_LOOKS and length < end:
                    continue
                if stop.is_set():
                    break
                num_finished = int(finished.sum())
                if 4 * num_finished > len(rows) or length == end:
                    # Taking rows out copies the cache, about three steps' time, so it waits until it is worth it.
                    num_outputs = length - prompts.shape[1]
                    outputs[rows, :num_outputs] = ids[:, prompts.shape[1] : length]
                    kept = (~finished).nonzero().squeeze(1)
                    if not len(kept):
                        break
                    rows, ids, finished = rows[kept], ids[kept], finished[kept]
                    cache.compact(kept)
            return outputs

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, n_words] without the padding of the vocabulary; BOS stands only before a text."""
        logits = logits[:, : self._tokenizer.n_words]
        if self._tokenizer.bos_id >= 0:
            logits[:, self._tokenizer.bos_id] = float("-inf")
        return logits

    def _read(self, requests: Sequence[Request], prompt_tokens: int, outputs: Sequence[list[int]]) -> Iterator[Outcome]:
        eos = self._tokenizer.eos_id
        for request, ids in zip(requests, outputs, strict=True):
            ended = eos in ids
            written = ids[: ids.index(eos)] if ended else ids
            yield Generation(
                request.key,
                self._tokenizer.decode(written),
                prompt_tokens,
                len(written) + ended,
                "stop" if ended else "length",
            )


def sample_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """One token per row of `logits` [B, V]: int64 [B], drawn from the nucleus of the tempered softmax.

    The nucleus is the smallest set of likeliest tokens with at least `top_p` of the mass (equally likely ones
    together). No sorting: a token is drawn from all of them by inverting the cumulative sum and kept when the tokens
    likelier than it hold less than `top_p`; else it is drawn again among the likelier ones only. Accepted draws have
    exactly the distribution of the nucleus, and 1 - top_p of the rows need a second round.
    """
    import torch

    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    tokens = _draw(probabilities, generator)
    if sampling.top_p >= 1:
        return tokens.squeeze(1)
    # A token of more than 1 - top_p leaves less than top_p for the likelier ones, whatever they are.
    undecided = (probabilities.gather(1, tokens) <= 1 - sampling.top_p).squeeze(1).nonzero().squeeze(1)
    candidates, drawn = probabilities[undecided], tokens[undecided]
    while len(undecided):
        likelier = torch.where(candidates > candidates.gather(1, drawn), candidates, 0.0)
        rejected = (likelier.sum(-1) >= sampling.top_p).nonzero().squeeze(1)
        undecided, candidates = undecided[rejected], likelier[rejected]
        if len(undecided):
            drawn = _draw(candidates, generator)
            tokens[undecided] = drawn
    return tokens.squeeze(1)


def _draw(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An index per row of non-negative `weights` [B, V], drawn in proportion to them: int64 [B, 1]."""
    import torch

    cumulative = weights.cumsum(-1)
    uniform = torch.rand(len(weights), 1, device=weights.device, generator=generator)
    # right=True: the first entry above the target, which is one of positive weight.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)


def _weights_sha256(model: Any) -> str:
    """Identity of the weights: SHA-256 over names, shapes and fp32 values, wherever and however they were stored."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """One torch thread per batch, as long as sampling goes on."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
