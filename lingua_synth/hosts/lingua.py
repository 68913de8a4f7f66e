"""`host: lingua`: Meta Lingua's own training loop with our mixture, model sizes, per-source losses and evaluation.

`train` opens the run as the native loop does (sources, resolved config, the folder's identity), then calls
`apps.main.train.train` under `bind`, which rebinds names in `apps.main.train` and nowhere else, and puts them back.
Lingua is found where it can be imported or where LINGUA_DIR points; this is the only file that imports it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lingua_synth.files import folder_lock, read_json, sha256_json
from lingua_synth.hosts.checkpoints import AlreadyTrained, build_manager_class, build_train_state_class
from lingua_synth.hosts.corrections import log_lines
from lingua_synth.hosts.fingerprint import SYMBOLS, fingerprint, validate_known
from lingua_synth.hosts.loss_head import build_model_class
from lingua_synth.hosts.plain import ignored_keys, plain_config, refuse_impossible, refuse_impossible_in_host
from lingua_synth.hosts.session import Session
from lingua_synth.model.checkpoint import PARAMS, list_checkpoints
from lingua_synth.model.checkpoint_reading import CheckpointReader
from lingua_synth.model.distributed import Ranks, leave_process_group
from lingua_synth.train.args import TrainArgs, resolve_args
from lingua_synth.train.evaluation import HeldOut
from lingua_synth.train.folder import RESULT
from lingua_synth.train.identity import claim_folder, run_identity
from lingua_synth.train.inputs import (
    fit_to_sources,
    open_shards,
    open_sources,
    refuse_conversations,
    refuse_other_vocabulary,
    with_shard_tokenizer,
)
from lingua_synth.train.preemption import LEFT, Preempted, Preemption, requeue_slurm_job

logger = logging.getLogger("lingua_synth.hosts")

REPOSITORY = "https://github.com/facebookresearch/lingua"


@dataclass(frozen=True)
class Lingua:
    """The modules of an imported Meta Lingua."""

    modules: dict[str, ModuleType]
    where: Path
    """Its checkout."""
    commit: str
    """The tested commit it equals where it matters, or 'unknown'."""

    def __getitem__(self, name: str) -> ModuleType:
        return self.modules[name]


def import_lingua(*, allow_unknown: bool = False) -> Lingua:
    """Import Meta Lingua from LINGUA_DIR, or from where Python finds it.

    ValueError when it is not there, when what it needs is not installed, or when it is not one that was tested.
    """
    folder = os.environ.get("LINGUA_DIR")
    if folder:
        if not (Path(folder) / "apps" / "main" / "train.py").is_file():
            raise ValueError(f"LINGUA_DIR {folder} is no checkout of Meta Lingua: no apps/main/train.py in it")
        if folder not in sys.path:
            sys.path.insert(0, folder)
    _forget_other_apps()
    try:
        modules = {name: importlib.import_module(name) for name in SYMBOLS}
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in ("apps", "lingua"):
            raise ValueError(
                f"host=lingua needs Meta Lingua, and there is no module {missing}: git clone {REPOSITORY}, and set "
                "LINGUA_DIR to that folder (a package `lingua` of the index is a language detector)"
            ) from None
        raise ValueError(
            f"Meta Lingua was found and needs {missing}, which is not installed: see its requirements.txt"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Meta Lingua was found and cannot be imported here ({error}); it needs a CUDA build of torch and xformers"
        ) from None
    where = Path(modules["apps.main.train"].__file__ or "").parents[2]
    commit = validate_known(fingerprint(modules), str(where), allow_unknown=allow_unknown)
    return Lingua(modules, where, commit)


def _forget_other_apps() -> None:
    """A folder `apps` without __init__.py (this repository has one) may have been imported under Lingua's name."""
    there = sys.modules.get("apps")
    if there is not None and getattr(there, "__file__", None) is None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "apps"]:
            del sys.modules[name]


def train(args: TrainArgs, *, progress: bool = True) -> dict[str, Any]:
    """Train to the end of the budget in Meta Lingua's loop and return the run's row of the runs table.

    Like `lingua_synth.train.loop.train`: a finished run returns its row at once, a killed one goes on from its newest
    checkpoint, of either loop. `progress`: Lingua's log on the terminal too. Raises ValueError for what cannot run, no
    Lingua, or one that was not tested; OSError when something cannot be written; Preempted after SIGTERM or SIGUSR2.
    """
    device = gpu(_local_rank())
    lingua = import_lingua(allow_unknown=args.synth.lingua_allow_unknown)
    refuse_impossible_in_host(args)
    with _process(lingua, args), _numerics(args):
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
        sources = open_sources(args, ranks)
        args = with_shard_tokenizer(args, sources)
        vocab_size = int(next(iter(sources.values())).manifest["tokenizer"]["n_words"])
        args = resolve_args(args, dp_size=ranks.size, vocab_size=vocab_size)
        refuse_impossible(args)
        args = fit_to_sources(args, sources, dp_size=ranks.size)
        domains = open_shards("domain", args.synth.evaluation.domains, ranks)
        refuse_other_vocabulary(sources, domains)
        refuse_conversations(sources)
        held_out = HeldOut(args, domains)
        config = _lingua_args(lingua, args)
        with folder_lock(args.dump_dir, "training run") if ranks.is_main else contextlib.nullcontext():
            identity = run_identity(args, sources, domains, ranks.size)
            identity = claim_folder(Path(args.dump_dir), args, identity, ranks)
            if (Path(args.dump_dir) / RESULT).is_file():
                row: dict[str, Any] = read_json(Path(args.dump_dir) / RESULT)
                return row
            with (
                Preemption() as preemption,
                Session(args, ranks, sources, held_out, preemption, sha256_json(identity)) as session,
                bind(lingua, session, progress=progress),
            ):
                try:
                    lingua["apps.main.train"].train(config)
                except AlreadyTrained:
                    logger.warning("the last step has been taken; what is missing is done")
                except torch.OutOfMemoryError as error:
                    raise ValueError(
                        f"{args.name}: the GPU's memory does not suffice; lower data.batch_size "
                        f"(synth.global_batch_tokens keeps the step's batch), or set distributed.fsdp_type=full_shard "
                        f"({str(error).splitlines()[0]})"
                    ) from None
                return session.finish()


def gpu(local_rank: int) -> torch.device:
    """The GPU of this rank; ValueError where there is none, as Lingua's loop runs nowhere else."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # As Lingua: by local rank where there are several; a launcher may also show each rank one.
    shown_one = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if local_rank >= count and not shown_one:
        raise ValueError(
            f"host=lingua: Meta Lingua trains on CUDA, and local rank {local_rank} has no GPU (this machine has "
            f"{count}); host=native trains on CPUs too"
        )
    return torch.device("cuda", local_rank if count > 1 else 0)


def _local_rank() -> int:
    """This rank's place on its machine, under torchrun or srun."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def _lingua_args(lingua: Lingua, args: TrainArgs) -> Any:
    """The resolved config as Lingua's TrainArgs; ValueError for what it cannot take."""
    plain = plain_config(args)
    plain["data"] |= {"root_dir": None, "sources": {}, "load_async": False}
    plain["logging"]["wandb"] = None  # the session writes to it, for both loops alike
    for kind in ("dump", "eval"):
        plain["checkpoint"][kind]["every"] = plain["checkpoint"][kind]["every"] or args.steps
    if args.checkpoint.init_ckpt_path is not None:
        plain["checkpoint"]["init_ckpt_path"] = str(_initial_checkpoint(args.checkpoint.init_ckpt_path))
    defaults = OmegaConf.structured(lingua["apps.main.train"].TrainArgs())
    try:
        return OmegaConf.to_object(OmegaConf.merge(defaults, OmegaConf.create(plain)))
    except OmegaConfBaseException as error:
        raise ValueError(f"Meta Lingua does not take this configuration: {str(error).splitlines()[0]}") from None


def _initial_checkpoint(path: str) -> Path:
    folder = Path(path)
    if not (folder / PARAMS).is_file():
        found = list_checkpoints(folder)
        if not found:
            raise ValueError(
                f"checkpoint.init_ckpt_path {path}: no checkpoint there, neither {PARAMS} nor checkpoints/"
            )
        folder = found[-1]
    CheckpointReader(folder).read_metadata()  # refused here, before Lingua unpickles whatever it holds
    return folder


@contextlib.contextmanager
def bind(lingua: Lingua, session: Session, *, progress: bool = True) -> Iterator[None]:
    """Rebind names in `apps.main.train` for one run, and nothing else anywhere; put back at the end, also on errors."""
    module, args, strict = lingua["apps.main.train"], session.args, session.is_strict
    theirs: dict[str, Any] = {}

    def built(model: torch.nn.Module) -> None:
        session.model = model

    def validate(config: Any, vocab_size: int) -> None:
        try:
            theirs["validate_train_args"](config, vocab_size)
        except AssertionError as error:
            raise ValueError(f"Meta Lingua refuses the configuration: {error}") from None

    def open_log(path: Any) -> None:
        theirs["init_logger"](path)
        root = logging.getLogger()
        if not progress:
            root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        # torch's checkpointing logs every call at DEBUG, and Lingua listens to everything.
        root.setLevel(logging.INFO)
        logger.info(f"Meta Lingua of {lingua.where}, commit {lingua.commit}")
        for line in log_lines(strict):
            logger.info(line)
        for key in ignored_keys(args):
            logger.warning(f"{key} has no effect with host=lingua")

    def is_due(state: Any, freq: int, acc_step: int | None = None, acc_freq: int | None = None) -> bool:
        def upstream(every: int) -> bool:
            return bool(theirs["every_n_steps"](state, every, acc_step=acc_step, acc_freq=acc_freq))

        if upstream(freq):
            return True
        # The last step is logged and saved, and so is what is saved logged: a resumed run then logs the same intervals.
        ends_step = state.acc_step == 0 and acc_step in (0, None)
        dump_every = args.checkpoint.dump.every or args.steps
        is_saved = state.step == args.steps or state.step % dump_every == 0
        return not strict and ends_step and is_saved and freq in (dump_every, args.logging.freq)

    class Metrics(module.MetricLogger):  # type: ignore[name-defined]
        """Lingua's, with TensorBoard and wandb as in the native loop."""

        def log(self, metrics: dict[str, Any]) -> None:
            super().log(metrics)
            session.track(metrics)

    class Flag(dict[str, bool]):
        """What the loop looks at after every micro-batch: the place for what happens between two steps."""

        def __getitem__(self, key: str) -> bool:
            session.evaluate_if_due()
            return super().__getitem__(key) if strict else session.agreed_signal() > 0

    def leave() -> NoReturn:
        number = session.agreed_signal()
        message = f"{args.name}: signal {number} at step {session.step} of {args.steps}; {LEFT}"
        if args.synth.requeue and session.ranks.is_main:
            message += f"; {requeue_slurm_job()}"
        logger.warning(message)
        raise Preempted(number, message)

    ours: dict[str, Any] = {
        "build_tokenizer": lambda name, path=None: SimpleNamespace(n_words=args.model.vocab_size),
        "validate_train_args": validate,
        "dump_config": lambda *_, **__: None,  # config.yaml is written, with our section
        "init_logger": open_log,
        # The ranks have met: they had to agree on the folder (`_process`).
        "setup_env": lambda _: None,
        "setup_torch_distributed": lambda _: None,
        "LMTransformer": build_model_class(
            lingua["apps.main.transformer"],
            attention=args.synth.attention,
            backend=args.synth.loss.backend,
            chunk_tokens=args.synth.loss.chunk_tokens_on(session.ranks.device.type),
            built=built,
            saw=session.saw,
        ),
        "TrainState": build_train_state_class(module, session),
        "CheckpointManager": build_manager_class(lingua["lingua.checkpoint"], session),
        "init_dataloader_state_from_args": lambda *_: {},
        "build_dataloader_from_args": lambda _, state: session.batches(state),
        "MetricLogger": Metrics,
        "dist_mean_dict": lambda values: session.metrics(theirs["dist_mean_dict"](values)),
        "every_n_steps": is_due,
        "preemption_flag": Flag(flag=False),
    }
    if not strict:
        ours |= {"init_signal_handler": lambda _: None, "requeue_slurm_job": leave}
    theirs.update({name: getattr(module, name) for name in ours})
    try:
        for name, value in ours.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in theirs.items():
            setattr(module, name, value)


@contextlib.contextmanager
def _process(lingua: Lingua, args: TrainArgs) -> Iterator[None]:
    """The process group as Lingua makes it, and the process as it was afterwards.

    Lingua changes the environment, the root logger, the way processes are started and the garbage collector, and logs
    the whole environment on the way, which may hold secrets: that line is kept out of every log.
    """
    distributed, root = lingua["lingua.distributed"], logging.getLogger()
    environment, handlers, level = dict(os.environ), list(root.handlers), root.level
    start_method, collects = multiprocessing.get_start_method(allow_none=True), gc.isenabled()
    for name in dir(distributed):
        if name.startswith("get_") and hasattr(getattr(distributed, name), "cache_clear"):
            getattr(distributed, name).cache_clear()  # of an earlier run in this process

    def without_environment(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("ENV: ")

    root.addFilter(without_environment)
    # Lingua sets it and may set it once only.
    multiprocessing.set_start_method(None, force=True)
    try:
        if not args.synth.strict_upstream and "LOCAL_RANK" not in os.environ and "SLURM_JOB_ID" not in os.environ:
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            os.environ.update(alone | {"MASTER_PORT": str(_free_port())})
        os.environ.update(args.env)
        defaults = OmegaConf.structured(lingua["apps.main.train"].TrainArgs())
        given = {"env": plain_config(args)["env"], "distributed": plain_config(args)["distributed"]}
        theirs: Any = OmegaConf.to_object(OmegaConf.merge(defaults, OmegaConf.create(given)))
        distributed.setup_env(theirs.env)
        distributed.setup_torch_distributed(theirs.distributed)
        yield
    finally:
        if dist.is_initialized():
            leave_process_group()
        root.removeFilter(without_environment)
        for handler in root.handlers:
            if handler not in handlers and isinstance(handler, logging.FileHandler):
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        multiprocessing.set_start_method(start_method, force=True)
        if collects:
            gc.enable()
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _numerics(args: TrainArgs) -> Iterator[None]:
    """PyTorch's global switches, as they were afterwards."""
    matmul = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), matmul.allow_tf32
    torch.use_deterministic_algorithms(args.synth.deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.autograd.set_detect_anomaly(before[1])
        matmul.allow_tf32 = before[2]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
