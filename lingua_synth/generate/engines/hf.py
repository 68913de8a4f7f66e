"""The engine for Hugging Face models without vLLM: transformers' `generate` on static batches, on a CPU or one GPU.

    requests of one group -> chat template -> sorted by prompt length -> batches, padded on the left -> `generate`
        -> one token for every row, again and again -> texts up to the end-of-text token

It needs nothing but transformers, so it is what `engine=auto` takes where vLLM has no device. A batch is as slow as its
longest row; vLLM on the same CPU writes more than twice as much, on a GPU many times.

Every row draws from a generator of its own, seeded with its request: the text of a request does not depend on its
neighbours but for rounding, which padding changes in the last bits. So the same requests in the same order and batch
size give the same text, and another batch size nearly always.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lingua_synth.generate.engine import Generation, Outcome, Request, Sampling
from lingua_synth.generate.engines.batches import Encoded, batch_by_length
from lingua_synth.generate.engines.tokenizer import ModelTokenizer, model_revision, too_long

if TYPE_CHECKING:
    import torch

DTYPES = {
    "fp32": "float32",
    "float32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}
"""Our short names and PyTorch's."""
# What tokenizers without a limit of their own say is far above any model's context.
LARGEST_CONTEXT = 1 << 24


class HFEngine:
    """Generation with the Hugging Face model `model`, a name or a folder; pip install 'lingua-synth[hf]'.

    `revision`: branch, tag or commit of the model. `device`: cpu or cuda; default cuda where there is one. `dtype`:
    fp32, bf16, fp16, or auto for the one the weights are stored in; default fp32 on a CPU, auto on a GPU. `batch_size`:
    requests answered together.

    A prompt that fills the model's context is a failure; a batch ends with the context of its longest prompt. The model
    is loaded when it is first needed. Raises ValueError where transformers, PyTorch, device or model is missing.
    """

    prompt_kinds = ("chat", "text")

    def __init__(
        self,
        model: str = "",
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
    ) -> None:
        if not model:
            raise ValueError("engine hf needs model=, the name or folder of a Hugging Face model")
        if dtype not in (None, "auto", *DTYPES):
            raise ValueError(f"dtype is auto or one of {', '.join(DTYPES)}; got {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        try:
            import torch
            import transformers  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"engine hf needs transformers and PyTorch ({error}): pip install 'lingua-synth[hf]'"
            ) from None
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError:
            raise ValueError(f"device is cpu or cuda; got {device!r}") from None
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device}, but PyTorch sees no GPU here; use device=cpu")
        self.name = f"hf:{model}"
        self._model_name = model
        self._asked_revision = revision
        self._asked_dtype = dtype
        self._batch_size = batch_size

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig)

    @cached_property
    def _tokenizer(self) -> ModelTokenizer:
        return ModelTokenizer(self._raw_tokenizer, self._model_name)

    @cached_property
    def _raw_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    @cached_property
    def _model_and_ends(self) -> tuple[Any, frozenset[int]]:
        """The model, and the tokens that end a text: several in chat models, where a turn's end is one of its own."""
        from transformers import AutoModelForCausalLM

        model = self._load(AutoModelForCausalLM, dtype=self._dtype).to(self._device).eval()
        stated = model.generation_config.eos_token_id
        ids = stated if isinstance(stated, (list, tuple)) else [stated]
        return model, frozenset(one for one in (*ids, self._raw_tokenizer.eos_token_id) if one is not None)

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self._model_name, revision=self._asked_revision or "main", **options)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"transformers cannot load {self._model_name}: {first} Give the folder of a model, or the name of one "
                "that this machine has or may fetch"
            ) from None

    @cached_property
    def _dtype(self) -> torch.dtype:
        import torch

        asked = self._asked_dtype or ("fp32" if self._device.type == "cpu" else "auto")
        if asked in DTYPES:
            return getattr(torch, DTYPES[asked])
        stored = getattr(self._config, "dtype", None) or getattr(self._config, "torch_dtype", None) or torch.float32
        return getattr(torch, stored) if isinstance(stored, str) else stored

    @cached_property
    def context_tokens(self) -> int | None:
        """The model's."""
        return self._context

    @cached_property
    def _context(self) -> int:
        known = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        return int(known or min(self._raw_tokenizer.model_max_length, LARGEST_CONTEXT))

    @cached_property
    def revision(self) -> str:
        """The commit that the model hub reports, a hash of a folder's files, the revision asked for, or `unknown`."""
        return model_revision(self._model_name, getattr(self._config, "_commit_hash", None), self._asked_revision)

    def count_tokens(self, text: str) -> int | None:
        """Length of `text` in the model's tokens, without special ones."""
        return self._tokenizer.count(text)

    @property
    def num_gpus(self) -> int:
        """1 on a GPU, 0 on a CPU."""
        return int(self._device.type == "cuda")

    def description(self) -> dict[str, Any]:
        """Versions of transformers and PyTorch, device, number format, context, chat template."""
        import torch
        import transformers

        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "device": self._device.type,
            "dtype": str(self._dtype).removeprefix("torch."),
            "context_tokens": self._context,
            **self._tokenizer.describe(),
        }

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """Answer batch by batch; results come when their batch is finished."""
        for batch in batch_by_length(
            requests, lambda request: self._tokenizer.encode(request.prompt), self._batch_size
        ):
            if batch is not None:
                yield from self._answer(batch)

    def _answer(self, batch: Sequence[Encoded]) -> Iterator[Outcome]:
        fits = [(request, ids) for request, ids in batch if 0 < len(ids) < self._context]
        for request, ids in batch:
            if not 0 < len(ids) < self._context:
                yield too_long(request, len(ids), self._context)
        if not fits:
            return
        sampling = fits[0][0].sampling
        room = self._context - max(len(ids) for _, ids in fits)
        outputs = self._generate(fits, min(sampling.max_tokens, room))
        _, ends = self._model_and_ends
        for (request, ids), written in zip(fits, outputs, strict=True):
            end = next((place for place, one in enumerate(written) if one in ends), None)
            text = self._raw_tokenizer.decode(written[:end], skip_special_tokens=True)
            # The bytes of a character that the end has cut in two; vLLM leaves them out, too.
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            num_output = len(written) if end is None else end + 1
            yield Generation(request.key, text, len(ids), num_output, "length" if end is None else "stop")

    def _generate(self, batch: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
        """Ids that the model writes after each prompt, up to `max_tokens`; what follows an end is padding."""
        import torch
        from transformers import GenerationConfig

        longest = max(len(ids) for _, ids in batch)
        model, ends = self._model_and_ends
        pad = min(ends, default=0)
        ids = torch.tensor([[pad] * (longest - len(ids)) + ids for _, ids in batch], device=self._device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in batch], device=self._device)
        # Without this the model's own file adds what no recipe asked for, such as top_k or a repetition penalty.
        model.generation_config = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=pad
        )
        sampling = batch[0][0].sampling
        draw = [] if sampling.temperature == 0 else [Draw(sampling, [one.seed for one, _ in batch], max_tokens)]
        try:
            with torch.inference_mode():
                output = model.generate(input_ids=ids, attention_mask=mask, logits_processor=draw)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"out of memory on {self._device} with batch_size {self._batch_size} and rows of "
                f"{longest:,} + {max_tokens:,} tokens; lower batch_size or max_tokens"
            ) from None
        return output[:, longest:].tolist()


class Draw:
    """A logits processor that draws each row's token with the row's own random numbers, one a step.

    The likeliest token of what it returns is the one drawn, so `generate` is told not to sample. Drawn from the
    nucleus: the smallest set of likeliest tokens of the tempered softmax with at least `top_p` of its mass, in order
    of probability, by inverting the cumulative sum at the row's number.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], max_tokens: int) -> None:
        import numpy as np

        self._sampling = sampling
        self._uniform = np.stack([np.random.default_rng(seed).random(max_tokens) for seed in seeds])
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] in, of which only the drawn token's is not -inf out. Called once for every step."""
        import torch

        uniform = torch.from_numpy(self._uniform[:, self._step, None]).to(scores.device)
        self._step += 1
        probabilities = torch.softmax(scores.double() / self._sampling.temperature, -1)
        sorted_p, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        cumulative = sorted_p.cumsum(-1)
        # A token belongs to the nucleus when those before it hold less than top_p.
        num_kept = (cumulative - sorted_p < self._sampling.top_p).sum(-1, keepdim=True).clamp_(min=1)
        mass = cumulative.gather(1, num_kept - 1)
        # right=True: the first entry above the target, which is one of positive probability.
        place = torch.searchsorted(cumulative, uniform * mass, right=True).minimum(num_kept - 1)
        drawn = torch.full_like(scores, float("-inf"))
        return drawn.scatter_(1, tokens.gather(1, place), 0.0)
