"""Attention against sums written out in fp64: every backend that runs here, causal and inside documents."""

import dataclasses
import math
import sys
import types

import pytest
import torch

from lingua_synth.model import ModelArgs, Transformer, build_model
from lingua_synth.model.args import head_dim
from lingua_synth.model.attention import (
    ATTENTION_BACKENDS,
    EXPLICIT_ATTENTION_UP_TO,
    attend,
    attend_flex,
    build_mask,
    dense_mask,
    document_lengths,
    flex_mask,
)
from lingua_synth.model.rotary import rotary_table, rotate

TINY = ModelArgs(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, max_seqlen=320, multiple_of=16)
CPU = torch.device("cpu")


def documents(length):
    """Two rows: one document that began before it and three of every size, and a single one."""
    row = [0] * 3 + [1] + [2] * (length // 2) + [5] * (length - length // 2 - 4)
    return torch.tensor([row, [7] * length], dtype=torch.int32)


def reference(queries, keys, values, document):
    """Query by query in fp64: softmax over the allowed keys only."""
    rows, heads, length, width = queries.shape
    shared = heads // keys.shape[1]
    out = torch.zeros(rows, heads, length, width, dtype=torch.float64)
    for b in range(rows):
        for t in range(length):
            first = 0 if document is None else next(s for s in range(t + 1) if document[b, s] == document[b, t])
            for h in range(heads):
                k, v = keys[b, h // shared, first : t + 1], values[b, h // shared, first : t + 1]
                out[b, h, t] = ((k @ queries[b, h, t]) / math.sqrt(width)).softmax(0) @ v
    return out


def draw(length, kv_heads, dtype):
    generator = torch.Generator().manual_seed(length + kv_heads)
    shapes = ((2, 4, length, 8), (2, kv_heads, length, 8), (2, kv_heads, length, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_attention_equals_its_definition(backend, with_documents, kv_heads, dtype, tolerance):
    inputs = draw(20, kv_heads, dtype)
    document = documents(20) if with_documents else None
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = reference(*exact_inputs, document)
    mask = build_mask(backend, document, 2, 20, CPU)
    found = attend(*inputs, mask, backend)
    assert found.dtype == dtype
    assert (found - exact).norm() <= tolerance * exact.norm()
    upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (exact * upstream).sum().backward()
    (found * upstream.to(dtype)).sum().backward()
    for x, y in zip(inputs, exact_inputs, strict=True):
        assert (x.grad - y.grad).norm() <= tolerance * y.grad.norm()
    with torch.no_grad():  # PyTorch's fused kernel, where the training of short sequences takes plain products
        assert (attend(*inputs, mask, backend) - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("with_documents", [False, True])
def test_long_sequences_take_another_kernel_with_the_same_result(with_documents):
    length = EXPLICIT_ATTENTION_UP_TO + 8
    inputs = draw(length, 2, torch.float32)
    document = documents(length) if with_documents else None
    found = attend(*inputs, build_mask("sdpa", document, 2, length, CPU), "sdpa")
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    every = torch.ones(2, length, length, dtype=torch.bool).tril()
    allowed = every if document is None else every & (document[:, :, None] == document[:, None, :])
    keys, values = (x.repeat_interleave(2, 1) for x in exact_inputs[1:])
    scores = exact_inputs[0] @ keys.mT / math.sqrt(8)
    exact = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1) @ values
    assert (found - exact).norm() <= 2e-6 * exact.norm()
    found.square().sum().backward()
    exact.square().sum().backward()
    for x, y in zip(inputs, exact_inputs, strict=True):
        assert (x.grad - y.grad).norm() <= 2e-6 * y.grad.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_the_block_mask_of_flex_attention_keeps_documents_apart(kv_heads):
    # Past a block of 128, so that whole blocks are skipped.
    queries, keys, values = (x.detach() for x in draw(384, kv_heads, torch.float32))
    document = documents(384)
    mask = flex_mask(document)
    assert mask.sparsity() > 100 / 3  # above the diagonal, 3 of 9 blocks; the first document is skipped too
    expected = attend(queries, keys, values, dense_mask(document), "sdpa")
    assert torch.allclose(attend_flex(queries, keys, values, mask), expected, atol=2e-6)


def test_documents_laid_end_to_end():
    document = torch.tensor([[3, 3, 4, 4], [4, 4, 4, 4], [0, 1, 2, 2]], dtype=torch.int32)
    # The 4 that ends one row and the 4 that fills the next are two documents.
    assert document_lengths(document) == [2, 2, 4, 1, 1, 2]


def fake_xformers(monkeypatch):
    """The few names of xformers that are used, computed plainly; it has no kernel for a CPU."""

    class LowerTriangularMask:
        pass

    class BlockDiagonalCausalMask:
        @classmethod
        def from_seqlens(cls, lengths):
            mask = cls()
            mask.lengths = lengths
            return mask

    def memory_efficient_attention(queries, keys, values, attn_bias):
        """[rows, length, heads, width], all heads alike, as xformers wants them."""
        assert queries.shape == keys.shape == values.shape
        rows, length = queries.shape[:2]
        allowed = torch.ones(length, length, dtype=torch.bool)
        if isinstance(attn_bias, BlockDiagonalCausalMask):
            assert rows == 1 and sum(attn_bias.lengths) == length
            allowed = torch.block_diag(*(torch.ones(n, n) for n in attn_bias.lengths)).bool()
        scores = torch.einsum("bqhc,bkhc->bhqk", queries, keys) / math.sqrt(queries.shape[-1])
        probabilities = scores.masked_fill(~allowed.tril(), -math.inf).softmax(-1)
        return torch.einsum("bhqk,bkhc->bqhc", probabilities, values)

    bias = types.SimpleNamespace(
        LowerTriangularMask=LowerTriangularMask, BlockDiagonalCausalMask=BlockDiagonalCausalMask
    )
    fmha = types.ModuleType("xformers.ops.fmha")
    fmha.attn_bias, fmha.memory_efficient_attention = bias, memory_efficient_attention
    ops = types.ModuleType("xformers.ops")
    ops.fmha = fmha
    for name, module in {
        "xformers": types.ModuleType("xformers"),
        "xformers.ops": ops,
        "xformers.ops.fmha": fmha,
        "xformers.ops.fmha.attn_bias": types.ModuleType("xformers.ops.fmha.attn_bias"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name, value in vars(bias).items():
        setattr(sys.modules["xformers.ops.fmha.attn_bias"], name, value)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("with_documents", [False, True])
def test_xformers_is_given_the_layout_it_wants(monkeypatch, with_documents, kv_heads):
    fake_xformers(monkeypatch)
    inputs = [x.detach() for x in draw(20, kv_heads, torch.float32)]
    document = documents(20) if with_documents else None
    found = attend(*inputs, build_mask("fmha", document, 2, 20, CPU), "fmha")
    assert torch.allclose(found, attend(*inputs, build_mask("sdpa", document, 2, 20, CPU), "sdpa"), atol=2e-6)


def test_the_masks_of_the_real_xformers_are_ours():
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    document = documents(20)
    mask = build_mask("fmha", document, 2, 20, CPU)
    assert isinstance(mask, bias.BlockDiagonalCausalMask)
    allowed = mask.materialize((1, 1, 40, 40))[0, 0] == 0
    expected = torch.block_diag(*(rows[0].float() for rows in dense_mask(document))).bool()
    assert torch.equal(allowed, expected)


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_a_document_in_a_sequence_is_read_as_if_alone(backend):
    # Positions run over the whole sequence, so this also shows that only distances matter.
    model = build_model(TINY, seed=0, attention=backend)
    tokens = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    document = documents(20)
    packed = model(tokens, tokens, document=document)
    for row in range(2):
        for number in document[row].unique():
            place = document[row] == number
            alone = model(tokens[row, place][None], tokens[row, place][None])
            assert torch.allclose(packed[row, place], alone[0], atol=1e-5)
    assert not torch.allclose(packed[0], model(tokens, tokens)[0], atol=1e-3)
    assert torch.allclose(packed[1], model(tokens, tokens)[1], atol=1e-5)


def test_impossible_attention_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="attention is one of sdpa, flex_attention, fmha; got 'flash'"):
        Transformer(TINY, attention="flash")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fmha needs xformers.*lingua-synth\[gpu\]"):
        Transformer(TINY, attention="fmha")
    with pytest.raises(ValueError, match=r"document has shape \[2, 20\], the tokens \[2, 8\]"):
        build_model(TINY, seed=0)(torch.zeros(2, 8, dtype=torch.int64), document=documents(20))


@pytest.mark.parametrize("with_documents", [False, True])
def test_one_compiled_block_serves_all_without_a_break(with_documents):
    seen = []

    def backend(graph, example_inputs):
        seen.append(graph)
        return graph.forward

    tokens = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    document = documents(20) if with_documents else None
    model = build_model(dataclasses.replace(TINY, n_layers=4), seed=0)
    expected = model(tokens, document=document)
    torch._dynamo.reset()
    for layer in model.layers:
        layer.compile(backend=backend, fullgraph=True)
    found = model(tokens, document=document)
    assert torch.allclose(found, expected, atol=2e-6)
    assert len(seen) == 1
    found.sum().backward()


def test_stretched_frequencies_are_llama_3_1_s():
    args = ModelArgs(
        dim=2048, n_heads=32, max_seqlen=9, rope_theta=500_000.0, rope_scaling_factor=32.0, rope_original_seqlen=8192
    )
    plain = 500_000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    table = torch.view_as_complex(rotary_table(args))
    found = table[1].angle().double()
    wavelengths = 2 * math.pi / plain
    for frequency, wavelength, stretched in zip(plain, wavelengths, found, strict=True):
        if wavelength < 8192 / 4:
            expected = frequency
        elif wavelength > 8192 / 1:
            expected = frequency / 32
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 32 + smooth * frequency
        assert math.isclose(stretched, expected, rel_tol=1e-5)
    between = (wavelengths >= 2048) & (wavelengths <= 8192)
    assert 0 < between.sum() < 32 and (wavelengths > 8192).any()
    unscaled = rotary_table(dataclasses.replace(args, rope_scaling_factor=1.0))
    assert torch.allclose(torch.view_as_complex(unscaled)[1].angle().double(), plain, rtol=1e-5)


def test_a_head_may_be_wider_than_its_share():
    args = dataclasses.replace(TINY, head_dim=16)
    model = build_model(args, seed=0)
    assert head_dim(args) == 16 and model.layers[0].attention.wq.weight.shape == (64, 32)
    assert model.layers[0].attention.wo.weight.shape == (32, 64)
    tokens = torch.randint(0, 61, (2, 20))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61
    assert torch.allclose(model(tokens)[:, :12], model(changed)[:, :12], atol=1e-6)


def test_every_backend_is_covered_here():
    assert ATTENTION_BACKENDS == ("sdpa", "flex_attention", "fmha")


def test_rotation_keeps_lengths_and_turns_by_position():
    args = ModelArgs(dim=8, n_heads=1, max_seqlen=5)
    x = torch.randn(1, 5, 1, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary_table(args))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    a, b = x[0, 1, 0, :2].tolist()  # the first pair turns by one radian per position
    expected = (a * math.cos(1) - b * math.sin(1), a * math.sin(1) + b * math.cos(1))
    assert torch.allclose(turned[0, 1, 0, :2], torch.tensor(expected), atol=1e-6)
