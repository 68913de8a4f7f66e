"""Sizes against published integers and the built model; the rule between them by its properties."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lingua_synth.model import PRESETS, ModelArgs, Transformer, count_parameters, ffn_hidden_dim, preset
from lingua_synth.model.args import head_dim
from lingua_synth.model.counts import (
    FLOPS_CONVENTIONS,
    PEAK_FLOPS,
    flops_breakdown,
    flops_per_token,
    in_words,
    peak_flops,
)
from lingua_synth.model.presets import ladder


# Meta's published totals; the feed-forward widths are those of the published weights.
@pytest.mark.parametrize(
    ("name", "ffn", "total"),
    [
        ("llama3.2-1B", 8192, 1_235_814_400),
        ("llama3.2-3B", 8192, 3_212_749_824),
        ("llama3-8B", 14336, 8_030_261_248),
        ("llama3-70B", 28672, 70_553_706_496),
        ("llama3.1-8B", 14336, 8_030_261_248),
        ("llama3.1-70B", 28672, 70_553_706_496),
        ("llama3.1-405B", 53248, 405_853_388_800),
    ],
)
def test_llama_s_presets_have_their_published_counts(name, ffn, total):
    args = preset(name)
    assert ffn_hidden_dim(args) == ffn
    assert count_parameters(args).total == total
    assert args.n_kv_heads == 8 and args.rope_theta == 500_000
    assert args.rope_scaling_factor == {"llama3": 1, "llama3.1": 8, "llama3.2": 32}[name.split("-")[0]]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_with_the_counted_parameters(name):
    args = dataclasses.replace(preset(name), max_seqlen=16)
    if args.vocab_size < 0:
        args.vocab_size = 1024
    with torch.device("meta"):
        model = Transformer(args)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(args).total


def test_a_preset_is_a_copy():
    preset("1B").dim = 1
    preset("350M").dim = 1
    assert preset("1B").dim == 1792 and preset("350M").dim > 1


@given(st.floats(math.log(45e6), math.log(400e9)))
def test_sizes_between_are_near_what_was_asked(log_count):
    count = round(math.exp(log_count) / 1e5) * 10**5
    args = preset(f"{count / 1e6}M")
    found = count_parameters(args).lingua
    limit = 1.10 if count < 100e6 else 1.08 if count < 1e9 else 1.04
    tabled = count in {100e6, 200e6, 500e6, 1e9, 2e9, 3e9}
    assert tabled or 1 / limit <= found / count <= limit
    assert head_dim(args) == 64 and args.dim == 64 * args.n_heads and args.multiple_of == 256


@given(st.floats(math.log(27_000), math.log(20e6)))
def test_nano_sizes_between_are_near_what_was_asked(log_count):
    count = round(math.exp(log_count))
    args = preset(f"nano-{count / 1000}k")
    found = count_parameters(dataclasses.replace(args, vocab_size=1)).non_embedding
    assert 1 / 1.23 <= found / count <= 1.23
    assert 24 <= head_dim(args) <= 48 and args.vocab_size == -1


@pytest.mark.parametrize(
    ("family", "unit", "low", "high"), [("", "M", 45.0, 400_000.0), ("nano-", "k", 27.0, 20_000.0)]
)
@given(data=st.data())
def test_more_parameters_never_mean_less_depth_or_width(family, unit, low, high, data):
    small, large = sorted(data.draw(st.lists(st.floats(low, high), min_size=2, max_size=2)))
    names = [f"{family}{number:.3f}{unit}" for number in (small, large)]
    a, b = map(preset, names)
    tabled = {dataclasses.astuple(args) for args in PRESETS.values()}
    if dataclasses.astuple(a) not in tabled:
        assert a.dim <= b.dim and a.n_layers <= b.n_layers
    assert preset(names[0]) == a


def test_the_tabled_sizes_lie_on_the_rule():
    for name in ("102M", "192M", "489M", "1.09B", "2.01B", "3.02B"):
        nominal = {"102M": "100M", "192M": "200M", "489M": "500M", "1.09B": "1B", "2.01B": "2B", "3.02B": "3B"}[name]
        assert preset(name) == preset(nominal)
    assert preset("1000M") == preset("1.0B") == preset("1B")
    assert preset("nano-107.0k") == preset("nano-107k")
    assert preset("nano-86.9k") == dataclasses.replace(preset("nano-107k"), dim=60)


def test_a_ladder_is_even_in_the_logarithm():
    names = ladder("100M", "3B", 6)
    assert names == ["100M", "197M", "390M", "770M", "1.52B", "3B"]
    assert ladder("nano-27k", "nano-804k", 3) == ["nano-27k", "nano-147k", "nano-804k"]
    assert ladder("1B", "2B", 2) == ["1B", "2B"]
    counts = [count_parameters(preset(name)).lingua for name in names]
    steps = [math.log(b / a) for a, b in itertools.pairwise(counts)]
    assert max(steps) - min(steps) < 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("1T"), r"no preset '1T'; there are: nano-27k, .*350M, 1.5B or nano-150k"),
        (lambda: preset("350k"), "no preset '350k'"),
        (lambda: preset("1b"), "no preset '1b'"),
        (lambda: preset("20M"), "no preset '20M'; there are: nano-27k, .* sizes from 46.6M to 486B"),
        (lambda: preset("900B"), "no preset '900B'; there are: "),
        (lambda: preset("nano-5k"), "no preset 'nano-5k'; .* sizes from nano-26.8k to nano-21.2M"),
        (lambda: ladder("100M", "nano-804k", 3), "of its family"),
        (lambda: ladder("1B", "100M", 3), "the first below the last"),
        (lambda: ladder("100M", "3B", 1), "at least 2 sizes"),
        (lambda: ladder("100M", "110M", 4), "no 4 different sizes"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (27_040, "27k"),
        (12_340, "12.3k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (9_999_000, "10M"),
        (101_753_280, "102M"),
        (1_087_781_632, "1.09B"),
        (405_853_388_800, "406B"),
    ],
)
def test_counts_in_words(count, words):
    assert in_words(count) == words


@pytest.mark.parametrize("tied", [False, True])
def test_wide_heads_and_ties_are_counted(tied):
    args = ModelArgs(
        dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=24, vocab_size=61, max_seqlen=8, weight_tying=tied
    )
    with torch.device("meta"):
        model = Transformer(args)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(args).total


# The paper's rate, 21,701 tokens/s on an A100, under each convention: research on published throughput.
@pytest.mark.parametrize(
    ("convention", "mfu"),
    [("causal", 52.1), ("palm", 58.9), ("lingua", 53.3), ("6N", 45.4), ("6N_non_embedding", 35.8)],
)
def test_the_paper_s_mfu_under_every_convention(convention, mfu):
    flops = flops_per_token(preset("1B"), 4096, convention)
    assert round(100 * 21_701 * flops / PEAK_FLOPS["A100"], 1) == mfu


def test_flops_are_spent_where_the_breakdown_says():
    args = preset("100M")
    parts = flops_breakdown(args, 4096)
    assert parts.total == flops_per_token(args, 4096) == 167_266_944 + 443_252_736 + 99_090_432
    assert (round(100 * parts.head / parts.total), round(100 * parts.attention / parts.total)) == (62, 14)
    wide = dataclasses.replace(args, head_dim=128)
    assert flops_breakdown(wide, 4096).attention == 2 * parts.attention
    assert set(FLOPS_CONVENTIONS) == {"causal", "palm", "lingua", "6N", "6N_non_embedding"}
    with pytest.raises(ValueError, match="no FLOPs convention 'chinchilla'; there are: causal"):
        flops_per_token(args, 4096, "chinchilla")


def test_lingua_s_convention_loses_a_tied_head():
    args = preset("1B")
    tied = dataclasses.replace(args, weight_tying=True)
    assert flops_per_token(tied, 4096) == flops_per_token(args, 4096)
    lost = flops_per_token(args, 4096, "lingua") - flops_per_token(tied, 4096, "lingua")
    assert lost == 6 * args.vocab_size * args.dim


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("Tesla T4", None),
        ("AMD Instinct MI300X", None),
        ("", None),
    ],
)
def test_peaks_by_the_name_cuda_gives(device, peak):
    assert peak_flops(device) == peak
