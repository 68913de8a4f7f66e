"""Initial weights do not depend on what holds them: one process, the meta device first, or shards on two ranks."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lingua_synth.model import ModelArgs, Transformer, build_model

# 61 entries and 3 x 10 rows of keys divide unevenly among two ranks.
ARGS = ModelArgs(dim=30, n_layers=2, n_heads=3, vocab_size=61, max_seqlen=24, multiple_of=16)


def made_on_meta(args, **options):
    with torch.device("meta"):
        return Transformer(args, **options)


@pytest.mark.parametrize("tied", [False, True])
def test_memory_that_comes_late_holds_the_same_model(tied):
    args = dataclasses.replace(ARGS, weight_tying=tied)
    expected = build_model(args, seed=3)
    model = made_on_meta(args)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), model.table):
        tensor.detach().fill_(float("nan"))
    model.init_weights(3)
    assert (model.output.weight is model.tok_embeddings.weight) is tied
    assert torch.equal(model.table, expected.table)
    found = dict(model.named_parameters())
    assert found.keys() == dict(expected.named_parameters()).keys()
    for name, parameter in expected.named_parameters():
        assert torch.equal(found[name], parameter), name


def test_buffers_alone_leave_the_weights():
    model = build_model(ARGS, seed=0)
    before = [p.clone() for p in model.parameters()]
    expected = model.table.clone()
    model.table.fill_(float("nan"))
    model.init_buffers()
    assert torch.equal(model.table, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def shard(model, mesh, dtype=None):
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cpu")
    model.init_weights(3)


def on_each_rank(rank, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tokens = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    for tied in (False, True):
        args = dataclasses.replace(ARGS, weight_tying=tied)
        expected = build_model(args, seed=3)
        expected(tokens, tokens).mean().backward()
        torch.manual_seed(rank)  # nothing may come from a rank's own state
        model = made_on_meta(args, loss="chunked")
        shard(model, mesh)
        for name, parameter in model.named_parameters():
            whole = expected.get_parameter(name)
            assert isinstance(parameter, DTensor)
            assert parameter.to_local().numel() < whole.numel() or whole.numel() < 2
            assert torch.equal(parameter.full_tensor(), whole), name
        losses = model(tokens, tokens)
        (losses.sum() / losses.numel()).backward()
        for name, parameter in model.named_parameters():
            gradient = expected.get_parameter(name).grad
            assert torch.allclose(parameter.grad.full_tensor(), gradient, rtol=1e-4, atol=1e-6), name
    halved = made_on_meta(ARGS, compute_dtype=torch.bfloat16)
    shard(halved, mesh, torch.bfloat16)
    losses = halved(tokens, tokens)
    assert losses.dtype == torch.float32
    exact = build_model(ARGS, seed=3)(tokens, tokens)
    assert torch.allclose(losses, exact, atol=0.05)
    dist.destroy_process_group()


@pytest.mark.slow
def test_shards_hold_the_weights_of_the_whole(tmp_path):
    mp.spawn(on_each_rank, args=(str(tmp_path / "rendezvous"),), nprocs=2)
