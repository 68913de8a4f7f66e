"""Meta Lingua on a CPU, for tests: what its loop takes from CUDA, replaced from outside. No part of the product.

`imported(patch)` gives Lingua's modules, with empty ones for xformers and wandb where those are not installed: on this
path Lingua only names them. `on_cpu(patch, lingua)` then lets its training loop run over gloo. Everything goes through
a pytest.MonkeyPatch and is undone with it.

As a program, `python tests/lingua_cpu.py WHAT ARGUMENTS`, alone or under torchrun:
    stock config=FILE ...     Lingua's own `main`, untouched but for the CPU
    batches FOLDER            Lingua's own loop on given batches; see `train_on_batches`
    ours config=FILE ...      `lingua-synth train` with host=lingua
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import sys
import time
import types
from pathlib import Path

LINGUA_DIR = os.environ.get("LINGUA_DIR")


def _empty_modules():
    """Modules with the names that Lingua takes from xformers and wandb when it is imported."""
    nothing = {name: type(name, (), {}) for name in ("AttentionBias", "MemSnapshotsProfiler", "PyTorchProfiler")}
    xformers, ops, fmha, profiler, wandb = (
        types.ModuleType(name)
        for name in ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.profiler", "wandb")
    )
    xformers.ops, xformers.profiler, ops.fmha, ops.AttentionBias = ops, profiler, fmha, nothing["AttentionBias"]
    profiler.MemSnapshotsProfiler, profiler.PyTorchProfiler = (
        nothing["MemSnapshotsProfiler"],
        nothing["PyTorchProfiler"],
    )
    wandb.run = None
    return {module.__name__: module for module in (xformers, ops, fmha, profiler, wandb)}


@functools.cache
def _define_flash_operator():
    """xformers registers it with its CUDA kernels; Lingua names it when it is imported."""
    import torch

    library = torch.library.Library("xformers_flash", "FRAGMENT")
    with contextlib.suppress(RuntimeError):
        library.define("flash_fwd(Tensor x) -> Tensor")
    return library


def imported(patch):
    """Lingua's modules as a namespace; `sys.modules` and `sys.path` are as before once `patch` is undone."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apps", "lingua")]:
        patch.delitem(sys.modules, name)
    patch.syspath_prepend(LINGUA_DIR)
    for name, module in _empty_modules().items():
        try:
            importlib.import_module(name)
        except ImportError:
            patch.setitem(sys.modules, name, module)
    _define_flash_operator()
    names = {
        "train": "apps.main.train",
        "transformer": "apps.main.transformer",
        "checkpoint": "lingua.checkpoint",
        "distributed": "lingua.distributed",
        "metrics": "lingua.metrics",
        "optim": "lingua.optim",
    }
    found = types.SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})
    # What was imported just now goes when `patch` is undone.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apps", "lingua")]:
        module = sys.modules.pop(name)
        patch.setitem(sys.modules, name, module)
    return found


class _Clock:
    """torch.cuda.Event in wall-clock time."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def on_cpu(patch, lingua):
    """Rebind what Lingua's loop takes from CUDA."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    class Monitor:
        device_name, device_index, device_capacity_gib = "cpu", 0, 0.0

        def __init__(self, device):
            pass

        def get_peak_stats(self):
            return lingua.metrics.GPUMemStats(*[0.0] * len(lingua.metrics.GPUMemStats._fields))

        def reset_peak_stats(self):
            pass

    init_process_group, to_empty, fork_rng = dist.init_process_group, torch.nn.Module.to_empty, torch.random.fork_rng

    def mean(x, mesh=None):
        total = torch.tensor(x)
        dist.all_reduce(total, group=mesh.get_group() if mesh else None)
        return total / dist.get_world_size()

    patch.setattr(dist, "init_process_group", lambda **kw: init_process_group(**(kw | {"backend": "gloo"})))
    patch.setattr(
        lingua.distributed,
        "init_device_mesh",
        lambda device, mesh_shape, **kw: init_device_mesh("cpu", mesh_shape, **kw),
    )
    patch.setattr(lingua.distributed, "dist_mean", mean)
    patch.setattr(lingua.train, "GPUMemoryMonitor", Monitor)
    patch.setattr(torch.Tensor, "cuda", lambda self, *args, **kw: self)
    patch.setattr(torch.nn.Module, "to_empty", lambda self, *, device, **kw: to_empty(self, device="cpu", **kw))
    patch.setattr(torch.nn.Module, "cuda", lambda self, *args, **kw: self)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.random, "fork_rng", lambda devices=None, **kw: fork_rng(devices=[], **kw))
    patch.setattr(torch.cuda, "Event", _Clock)
    patch.setattr(torch.cuda, "synchronize", lambda *args: None)


@contextlib.contextmanager
def process_state(lingua):
    """Put back what a run of Lingua leaves behind in its process: environment, root logger, start method, group."""
    import gc
    import logging
    import multiprocessing
    import signal
    import socket

    import torch.distributed as dist

    root, environ = logging.getLogger(), dict(os.environ)
    before = list(root.handlers), root.level
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    for cached in ("get_is_torch_run", "get_is_slurm_job", "get_global_rank", "get_local_rank"):
        getattr(lingua.distributed, cached).cache_clear()
    for cached in ("get_world_size", "get_is_master", "get_master_port", "get_master_addr"):
        getattr(lingua.distributed, cached).cache_clear()
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    if "LOCAL_RANK" not in os.environ:  # alone: a port of its own, where Lingua takes the same for every run
        with socket.socket() as free:  # the system gives no port a second time soon after
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ |= {
            "LOCAL_RANK": "0",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        multiprocessing.set_start_method(method, force=True)
        gc.enable()
        for handler in root.handlers:
            if handler not in before[0]:
                handler.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environ)


def train_on_batches(patch, lingua, config, blocks):
    """Lingua's own `train`, its data loader alone replaced: returns its metrics.jsonl.

    config: what `OmegaConf.merge` puts over Lingua's defaults. blocks: this rank's micro-batches in order, int
    [batch_size, seq_len + 1].
    """
    import numpy as np
    from omegaconf import OmegaConf

    @contextlib.contextmanager
    def loader(args, state=None):
        at = 0 if state is None else state["at"]
        yield (
            (np.stack([block[:, :-1], block[:, 1:]], axis=-1).astype(np.int64), {"at": at + index + 1})
            for index, block in enumerate(blocks[at:])
        )

    with patch.context() as rebound, process_state(lingua):
        on_cpu(rebound, lingua)
        rebound.setattr(lingua.train, "init_dataloader_state_from_args", lambda args, rank, size: {"at": 0})
        rebound.setattr(lingua.train, "build_dataloader_from_args", loader)
        defaults = OmegaConf.structured(lingua.train.TrainArgs())
        lingua.train.train(OmegaConf.to_object(OmegaConf.merge(defaults, OmegaConf.create(config))))
    lines = (Path(config["dump_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def shared_keys(args):
    """Our resolved config with the keys that Lingua's `TrainArgs` has, written out by hand for the parity tests."""
    asked = dataclasses.asdict(args)
    keep = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim_multiplier", "multiple_of", "norm_eps")
    keep += ("rope_theta", "init_base_std", "init_std_factor", "weight_tying", "seed", "vocab_size")
    return {
        "name": args.name,
        "dump_dir": args.dump_dir,
        "seed": args.seed,
        "steps": args.steps,
        "grad_acc_steps": args.grad_acc_steps,
        "optim": asked["optim"],
        "model": {key: asked["model"][key] for key in keep},
        "data": {"seq_len": args.data.seq_len, "batch_size": args.data.batch_size, "tokenizer": {"name": "bytes"}},
        "distributed": {"model_dtype": args.distributed.model_dtype, "fsdp_type": "no_shard"},
        "checkpoint": {"dump": asked["checkpoint"]["dump"], "eval": {"every": 10**9}},
        "logging": {"freq": args.logging.freq},
    }


def main(argv):
    """The program under torchrun."""
    import numpy as np
    import pytest

    what, *words = argv
    with pytest.MonkeyPatch.context() as patch:
        lingua = imported(patch)
        on_cpu(patch, lingua)
        if what == "stock":
            patch.setattr(sys, "argv", [sys.argv[0], *words])
            with process_state(lingua):
                lingua.train.main()
        elif what == "batches":
            folder, rank = Path(words[0]), os.environ.get("RANK", "0")
            config = json.loads((folder / "config.json").read_text())
            train_on_batches(patch, lingua, config, np.load(folder / f"blocks_{rank}.npy"))
        else:
            import torch

            from lingua_synth.config import run_command
            from lingua_synth.hosts import lingua as host
            from lingua_synth.train.command import main as train

            patch.setattr(host, "gpu", lambda local_rank: torch.device("cpu"))
            return run_command(train, words)
    return 0


if __name__ == "__main__":
    # The checkout, whose folder `apps` must not hide Lingua's package of that name.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(sys.argv[1:]))
