"""The model against known integers, independent arithmetic and itself."""

import dataclasses
import math

import pytest
import torch

from lingua_synth.model import (
    PRESETS,
    KVCache,
    ModelArgs,
    build_model,
    count_parameters,
    ffn_hidden_dim,
    flops_per_token,
    preset,
)
from lingua_synth.model.rotary import rotary_table, rotate

TINY = ModelArgs(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, max_seqlen=24, multiple_of=16)


# Counts of the real Meta Lingua model on the meta device, vocabulary 128,256; labels are the paper's.
@pytest.mark.parametrize(
    ("name", "ffn", "non_embedding", "lingua", "total", "label"),
    [
        ("100M", 1536, 27_877_824, 101_753_280, 175_628_736, "102M"),
        ("200M", 2304, 85_214_272, 191_923_264, 298_632_256, "192M"),
        ("500M", 3584, 325_100_800, 489_268_480, 653_436_160, "489M"),
        ("1B", 4864, 857_946_880, 1_087_781_632, 1_317_616_384, "1.09B"),
        ("2B", 6144, 1_718_153_920, 2_005_447_360, 2_292_740_800, "2.01B"),
        ("3B", 7168, 2_687_146_560, 3_023_690_304, 3_360_234_048, "3.02B"),
    ],
)
def test_paper_presets_have_lingua_s_counts(name, ffn, non_embedding, lingua, total, label):
    args = preset(name)
    counts = count_parameters(args)
    assert ffn_hidden_dim(args) == ffn
    assert args.dim // args.n_heads == 64
    assert (counts.non_embedding, counts.lingua, counts.total, counts.label) == (non_embedding, lingua, total, label)


def test_llama_3_8b_has_its_published_count():
    args = ModelArgs(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim_multiplier=1.3, multiple_of=1024, vocab_size=128_256
    )
    assert count_parameters(args).total == 8_030_261_248


def test_nano_presets_are_named_after_their_non_embedding_count():
    for name, args in PRESETS.items():
        if name.startswith("nano-"):
            counted = count_parameters(dataclasses.replace(args, vocab_size=1024)).non_embedding
            assert name == f"nano-{round(counted / 1000)}k"


@pytest.mark.parametrize("tied", [False, True])
def test_counting_equals_the_built_model(tied):
    args = dataclasses.replace(TINY, weight_tying=tied)
    model = build_model(args, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(args).total


def test_flops_of_the_1b_preset_at_4096():
    # 6 x (non-embedding + head) + 6 L T d, in GFLOP per token.
    assert round(flops_per_token(preset("1B"), 4096) / 1e9, 2) == 7.50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "not an even whole head dimension"),
        ({"n_kv_heads": 3}, "n_kv_heads 3 does not divide model.n_heads 4; choose from 1, 2, 4"),
        ({"n_layers": 0}, "model.n_layers must be at least 1"),
        ({"vocab_size": -1}, "model.vocab_size must be at least 1"),
        ({"init_std_factor": "depth"}, "init_std_factor is one of"),
    ],
)
def test_impossible_models_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_model(dataclasses.replace(TINY, **change), seed=0)


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_model(TINY, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.output.weight, other.output.weight)


def test_initial_weights_have_lingua_s_spread():
    args = dataclasses.replace(TINY, dim=256, n_heads=4, vocab_size=512, multiple_of=256)
    model = build_model(args, seed=0)
    truncated = 0.98658  # standard deviation of a unit normal cut at three
    for weight, std in (
        (model.tok_embeddings.weight, 256**-0.5),
        (model.layers[0].attention.wq.weight, 256**-0.5),
        (model.layers[1].feed_forward.w2.weight, ffn_hidden_dim(args) ** -0.5),
    ):
        assert weight.abs().max() <= 3 * std
        assert math.isclose(float(weight.detach().std()), std * truncated, rel_tol=0.02)


def test_rotary_positions_are_relative():
    table = rotary_table(ModelArgs(dim=8, n_heads=1, max_seqlen=64))
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i, j):
        return float((rotate(q, table[i : i + 1]) * rotate(k, table[j : j + 1])).sum())

    assert math.isclose(score(3, 1), score(40, 38), rel_tol=1e-4, abs_tol=1e-5)
    assert not math.isclose(score(3, 1), score(3, 2), rel_tol=1e-3)
    assert torch.equal(rotate(q, table[:1]), q)


def test_the_future_does_not_change_the_past():
    model = build_model(TINY, seed=0)
    tokens = torch.randint(0, 61, (2, 20))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61
    assert torch.allclose(model(tokens)[:, :12], model(changed)[:, :12], atol=1e-6)
    assert not torch.allclose(model(tokens)[:, 12:], model(changed)[:, 12:], atol=1e-3)


def test_sampling_with_a_cache_sees_what_a_full_pass_sees():
    model = build_model(TINY, seed=0).eval()
    tokens = torch.randint(0, 61, (3, 20))
    with torch.inference_mode():
        full = model(tokens)
        cache = KVCache(TINY, 3, 24, "cpu", torch.float32)
        parts = [model(tokens[:, :7], cache=cache, start=0)]
        parts += [model(tokens[:, t : t + 1], cache=cache, start=t) for t in range(7, 12)]
        cache.compact(torch.tensor([2, 0]))
        rest = [model(tokens[[2, 0], t : t + 1], cache=cache, start=t) for t in range(12, 20)]
    assert torch.allclose(torch.cat(parts, 1), full[:, :12], atol=1e-5)
    assert torch.allclose(torch.cat(rest, 1), full[[2, 0], 12:], atol=1e-5)
