"""Per-token loss from hidden states, without holding the logits of a large batch.

At 16,384 tokens and a 128k vocabulary the logits alone are 2.1e9 numbers. `token_nll` gives one fp32 number per token
by whichever backend is asked for; all reduce in fp32 and sum the gradient of the output matrix in fp32, whatever the
compute type. `chunked`, ours, works through chunks of tokens and leaves nothing of their logits behind but gradients:

    forward, per chunk:  z = h W^t;  nll = lse(z) - z[label];  u = (softmax(z) - onehot) / n;  dh = u W;  dW += u^t h

Those are the gradients when the upstream gradient of each of the n tokens is 1/n. A mean or a sum gives all tokens the
same one, g, and the backward pass only multiplies by n g: three matrix products, where forming the logits once more
would take four. (For the mean n g is 1 over the accumulation steps, mostly a power of two: bf16 rounds no second time.)
When upstream gradients differ, dh is still a row-wise product, but dW = sum g_i u_i h_i^t is not: then the backward
pass forms the chunks again (six products in all).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

LOSS_BACKENDS = ("plain", "chunked", "torch", "liger", "cce")

CHUNK_TOKENS = 1024

IGNORED_LABEL = -100

# 64 MiB in fp32. 2,048 tokens x 1,024 entries on one CPU core: 4.3 ms kept, 7.0 ms chunked, forward and backward.
KEEP_LOGITS_BELOW = 2**24

_PACKAGES = {"liger": ("liger_kernel", "liger-kernel"), "cce": ("cut_cross_entropy", "cut-cross-entropy")}


def validate_loss(backend: str, chunk_tokens: int) -> None:
    """Raise ValueError if there is no such backend, or its package is missing or too old to be right."""
    if backend not in ("auto", *LOSS_BACKENDS):
        raise ValueError(f"loss backend is one of auto, {', '.join(LOSS_BACKENDS)}; got {backend!r}")
    if chunk_tokens < 1:
        raise ValueError(f"loss chunk_tokens must be at least 1, got {chunk_tokens}")
    if backend == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise ValueError(f"loss backend torch needs torch 2.13 or newer, this is {torch.__version__}; take chunked")
    if backend in _PACKAGES:
        module, package = _PACKAGES[backend]
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"loss backend {backend} needs the package {package}, which is not installed; take chunked"
            )


def token_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    backend: str = "auto",
    chunk_tokens: int = CHUNK_TOKENS,
) -> torch.Tensor:
    """Negative log-likelihood in nats of each label, fp32, shape of `labels`.

    hidden: [..., dim] in the compute type (fp32 or bf16); weight: [vocab, dim]; labels: [...] int64, within the
    vocabulary or -100, whose loss is 0 and gives no gradient. Logits are formed in the compute type and reduced in
    fp32, as Lingua does. `chunk_tokens`: tokens whose logits exist at once (`chunked`, `torch`).

    `auto` keeps the logits (`plain`) where there are fewer than `KEEP_LOGITS_BELOW`, else takes `chunked`. `liger` and
    `cce` run on CUDA alone; ValueError elsewhere.
    """
    validate_loss(backend, chunk_tokens)
    hidden, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if backend == "auto":
        backend = "plain" if flat_labels.numel() * weight.shape[0] < KEEP_LOGITS_BELOW else "chunked"
    if backend in _PACKAGES and hidden.device.type != "cuda":
        raise ValueError(f"loss backend {backend} runs on a CUDA device, the model is on {hidden.device}; take chunked")
    if backend == "plain":
        nll = _plain(hidden, weight, flat_labels)
    elif backend == "chunked":
        gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        nll = _ChunkedNLL.apply(hidden, weight, flat_labels, chunk_tokens, gradients)
    elif backend == "torch":
        nll = _torch_chunked(hidden, weight, flat_labels, chunk_tokens)
    elif backend == "liger":
        nll = _liger(hidden, weight, flat_labels)
    else:
        nll = _cce(hidden, weight, flat_labels)
    return nll.view(labels.shape)


def _plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL)


def _chunk_step(
    logits: torch.Tensor, labels: torch.Tensor, upstream: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """NLL of a chunk from its logits [n, V] (overwritten), and for its upstream gradient the gradient of the logits, in
    their type."""
    ignored = labels == IGNORED_LABEL
    target = labels.masked_fill(ignored, 0)[:, None]
    wide = logits.float()
    at_target = wide.gather(1, target).squeeze(1)
    top = wide.amax(1)
    wide.sub_(top[:, None]).exp_()
    total = wide.sum(1)
    nll = (top + total.log() - at_target).masked_fill(ignored, 0.0)
    if upstream is None:
        return nll, None
    upstream = upstream.masked_fill(ignored, 0.0)
    wide.mul_((upstream / total)[:, None])
    wide.scatter_add_(1, target, -upstream[:, None])
    return nll, wide.to(logits.dtype)


@functools.cache
def _step_on(device_type: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    # A GPU waits for memory in each of the step's nine passes over the logits; compiled there are three. On a CPU the
    # products are nine tenths of the time and compilation takes longer than a short run.
    return torch.compile(_chunk_step, dynamic=False) if device_type == "cuda" else _chunk_step


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, total in fp32 also where the factors are bf16."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cuda" and torch.cuda.get_device_capability(left.device)[0] >= 8:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.add_(left @ right)


class _ChunkedNLL(torch.autograd.Function):
    """See the module's text. The first backward pass spends the mean's gradients; a second one forms them again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int, gradients: bool
    ) -> torch.Tensor:
        mean = torch.full(labels.shape, 1 / max(1, labels.numel()), device=hidden.device) if gradients else None
        nll, *ctx.mean_gradients = _in_chunks(hidden, weight, labels, chunk, mean)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.chunk = chunk
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, labels = ctx.saved_tensors
        scale = _common_scale(grad, labels) if ctx.mean_gradients is not None else None
        if scale is None:
            _, grad_hidden, grad_weight = _in_chunks(hidden, weight, labels, ctx.chunk, grad)
        else:
            grad_hidden, grad_weight = ctx.mean_gradients
            grad_hidden.mul_(scale * labels.numel())
            grad_weight.mul_(scale * labels.numel())
        ctx.mean_gradients = None
        assert grad_weight is not None, "asked for"
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _in_chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    chunk: int,
    upstream: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """NLL per token, and for its upstream gradient the gradients of `hidden` and (fp32) of `weight`."""
    step = _step_on(hidden.device.type)
    weight_compute = weight.to(hidden.dtype)
    num_tokens = hidden.shape[0]
    nll = torch.empty(num_tokens, dtype=torch.float32, device=hidden.device)
    logits = torch.empty(min(chunk, num_tokens), weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    grad_hidden = grad_weight = None
    if upstream is not None:
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        some = logits[: hidden[part].shape[0]]
        torch.mm(hidden[part], weight_compute.t(), out=some)
        nll[part], grad_logits = step(some, labels[part], None if upstream is None else upstream[part])
        if grad_logits is None or grad_hidden is None or grad_weight is None:
            continue
        torch.mm(grad_logits, weight_compute, out=grad_hidden[part])
        _add_product(grad_weight, grad_logits.t(), hidden[part])
    return nll, grad_hidden, grad_weight


def _common_scale(grad: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """The one upstream gradient of all tokens that count, or None if they differ.

    `losses.sum() / n` hands down one number seen as many (stride 0), which needs no look at the data. `losses.mean()`
    writes it out: then a GPU is waited for, still far less than two products with the output matrix.
    """
    if grad.numel() == 0 or grad.stride() == (0,):
        return grad.sum() if grad.numel() == 0 else grad[0]
    kept = grad[labels != IGNORED_LABEL]
    if kept.numel() == 0:
        return grad.new_zeros(())
    return kept[0] if bool((kept == kept[0]).all()) else None


def _torch_chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int) -> torch.Tensor:
    # reduction="none": its "mean" returns bf16 for bf16 inputs, off by up to 0.45 nat. "accurate" sums in fp32. The
    # chunk is given because its own choice was six times slower.
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=chunk,
        chunking_method=None,
        acc_policy="accurate",
        acc_dtype=torch.float32,
    )
    return F.linear_cross_entropy(
        hidden, weight.to(hidden.dtype), labels, reduction="none", ignore_index=IGNORED_LABEL, options=options
    ).float()


def _liger(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if "token_grad_output" not in inspect.signature(fused_linear_cross_entropy_forward).parameters:
        raise ValueError(
            f"liger-kernel {importlib.metadata.version('liger-kernel')} gives all tokens the first one's upstream "
            "gradient: install 0.8.5 or newer, or take chunked"
        )
    return liger_fused_linear_cross_entropy(
        hidden,
        weight.to(hidden.dtype),
        labels,
        ignore_index=IGNORED_LABEL,
        reduction="none",
        accum_dtype=torch.float32,
    )


def _cce(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    if "accum_c_fp32" not in inspect.signature(linear_cross_entropy).parameters:
        raise ValueError(
            f"cut-cross-entropy {importlib.metadata.version('cut-cross-entropy')} sums the gradient of the output "
            "matrix in bf16: install it from github.com/apple/ml-cross-entropy, or take chunked"
        )
    # Gradients of rare vocabulary entries are small everywhere: left unfiltered, they still learn.
    return linear_cross_entropy(
        hidden,
        weight.to(hidden.dtype),
        labels,
        ignore_index=IGNORED_LABEL,
        reduction="none",
        accum_e_fp32=True,
        accum_c_fp32=True,
        filter_c_grad=False,
    ).float()
