"""The engine that runs vLLM in this process, fed request by request.

    requests -> chat template and cut to the context, on our side -> LLMEngine.add_request / step -> finished texts

vLLM schedules best with more waiting than it can run, so twice `max_num_seqs` requests are kept inside it; handing over
one list after the other would leave it half empty at the end of each. An over-long prompt never reaches vLLM, where it
would end the whole call; it is a failure of its own.

Importing vllm says nothing: without a device it imports and fails only when an engine is built. So the device is asked.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from typing import Any

from lingua_synth.generate.engine import Failure, Generation, Outcome, Request
from lingua_synth.generate.engines.tokenizer import ModelTokenizer, model_revision, too_long


class VLLMEngine:
    """Offline generation with the Hugging Face model `model`, a name or a folder; pip install 'lingua-synth[vllm]'.

    `revision`: branch, tag or commit of the model. `max_num_seqs`: requests that run at the same time.
    `engine_args`: anything that vLLM's `LLM` takes, such as tensor_parallel_size, max_model_len,
    gpu_memory_utilization. The model is loaded when it is first needed. Raises ValueError, then, where vLLM or a
    device for it is missing.
    """

    prompt_kinds = ("chat", "text")

    def __init__(
        self,
        model: str = "",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_num_seqs: int = 256,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise ValueError("engine vllm needs model=, the name or folder of a Hugging Face model")
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        self.name = f"vllm:{model}"
        self._model = model
        self._asked_revision = revision
        self._max_num_seqs = max_num_seqs
        self._engine_args = {
            "model": model,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            **(engine_args or {}),
        }

    @cached_property
    def _llm(self) -> Any:
        device = _device_type()
        args = dict(self._engine_args)
        if device == "cpu":
            # Seeds of single requests and chunked prefill together kill the engine on a CPU (vLLM 0.32).
            args.setdefault("enable_chunked_prefill", False)
            args.setdefault("enforce_eager", True)
            args.setdefault("gpu_memory_utilization", _half_of_free_memory())
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM

        try:
            return LLM(**args)
        except TypeError as error:
            raise ValueError(f"vLLM does not take these engine_args: {error}") from None
        except Exception as error:  # vLLM's own kinds differ between versions and from one of its processes to another
            raise ValueError(
                f"vLLM does not start with {self._model}: {error}. What it wrote above names the cause; where "
                "memory is short, lower engine_args.gpu_memory_utilization or engine_args.max_model_len"
            ) from error

    @cached_property
    def _tokenizer(self) -> ModelTokenizer:
        return ModelTokenizer(self._llm.get_tokenizer(), self._model)

    @cached_property
    def _config(self) -> Any:
        return self._llm.llm_engine.vllm_config.model_config

    @cached_property
    def revision(self) -> str:
        """The commit that the model hub reports, a hash of a folder's files, the revision asked for, or `unknown`."""
        commit = getattr(self._config.hf_config, "_commit_hash", None)
        return model_revision(self._model, commit, self._asked_revision)

    def count_tokens(self, text: str) -> int | None:
        """Length of `text` in the model's tokens, without special ones."""
        return self._tokenizer.count(text)

    @property
    def num_gpus(self) -> int:
        """GPUs of its tensor, pipeline and data parallel ranks; 0 on a CPU."""
        if _device_type() == "cpu":
            return 0
        return int(self._llm.llm_engine.vllm_config.parallel_config.world_size_across_dp)

    @property
    def context_tokens(self) -> int | None:
        """The model's, or engine_args.max_model_len."""
        return int(self._config.max_model_len)

    def description(self) -> dict[str, Any]:
        """Version of vLLM, device, GPUs, number format, context, chat template."""
        import vllm

        return {
            "vllm": vllm.__version__,
            "device": _device_type(),
            "num_gpus": self.num_gpus,
            "dtype": str(self._config.dtype).removeprefix("torch."),
            "context_tokens": self.context_tokens,
            **self._tokenizer.describe(),
        }

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """Keep 2 x `max_num_seqs` requests inside vLLM until all are through; results as they finish."""
        engine = self._llm.llm_engine
        inside: dict[str, Request] = {}
        exhausted = False
        try:
            while inside or not exhausted:
                while not exhausted and len(inside) < 2 * self._max_num_seqs:
                    try:
                        request = next(requests)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:  # more come when more is done
                        exhausted = not inside
                        break
                    ids = self._tokenizer.encode(request.prompt)
                    room = self._config.max_model_len - len(ids)
                    if not ids or room < 1:
                        yield too_long(request, len(ids), self._config.max_model_len)
                        continue
                    try:
                        engine.add_request(request.key, {"prompt_token_ids": ids}, _sampling_params(request, room))
                    except ValueError as error:
                        yield Failure(request.key, f"vLLM refuses the request: {error}")
                        continue
                    inside[request.key] = request
                if not inside:
                    continue
                for output in engine.step():
                    if output.finished:
                        del inside[output.request_id]
                        yield _read_output(output)
        finally:
            if inside:
                engine.abort_request(list(inside))


def _half_of_free_memory() -> float:
    """As a share of the machine's memory, which vLLM takes it in; its default is nearly all, as if nobody else ran."""
    import psutil  # vLLM needs it, too

    memory = psutil.virtual_memory()
    return float(round(memory.available / memory.total / 2, 3))


def find_device() -> str:
    """The kind of device that vLLM would run on here; empty without vLLM, or without a device for this build of it."""
    try:
        return _device_type()
    except ValueError:
        return ""


def _device_type() -> str:
    """The device vLLM would run on; ValueError without vLLM or without a device."""
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError(
            f"engine vllm needs vLLM ({error}): pip install 'lingua-synth[vllm]', on a machine with a GPU. Without "
            "one, engine=hf runs the same model slowly and engine=openai reaches a server"
        ) from None
    if not current_platform.device_type:
        raise ValueError(
            "vLLM is installed but finds no device that this build runs on; use a machine with a GPU, or engine=openai "
            "with a server elsewhere"
        )
    return current_platform.device_type


def _sampling_params(request: Request, room: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=min(sampling.max_tokens, room),
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _read_output(output: Any) -> Outcome:
    completion = output.outputs[0]
    if completion.finish_reason not in ("stop", "length"):
        return Failure(output.request_id, f"vLLM ended the request with {completion.finish_reason!r}")
    return Generation(
        output.request_id,
        completion.text,
        len(output.prompt_token_ids),
        len(completion.token_ids),
        completion.finish_reason,
        cached_tokens=output.num_cached_tokens or 0,
    )
