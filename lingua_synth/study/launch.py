"""Training the runs of a study on this machine, several at a time.

Worker processes import torch once and take one run after the other. All state is in the run folders: a run whose
`result.json`
exists is done, anything else is trained (again, or on from its checkpoint). Kill the launcher and its workers end with
it.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lingua_synth.study.plan import PlannedRun


def launch(
    runs: Sequence[PlannedRun],
    *,
    num_workers: int = 2,
    threads_per_worker: int = 1,
    progress: bool = True,
    desc: str = "study",
) -> None:
    """Train every unfinished run of `runs`, the longest first so that no worker idles at the end.

    A run that fails does not stop the others; at the end a ValueError names the failed ones with their reasons, and
    the next launch tries them again.
    """
    waiting = sorted((run for run in runs if not run.is_finished), key=lambda run: -run.flops)
    if not waiting:
        return
    failed: dict[str, str] = {}
    bar = tqdm(
        total=sum(run.flops for run in runs), initial=sum(run.flops for run in runs if run.is_finished), unit="FLOP",
        unit_scale=True, desc=f"{desc} ({len(runs)} runs)", disable=not progress, dynamic_ncols=True,
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    # OpenMP reads its thread count when a worker first loads torch: it must be in the environment before the spawn.
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, str(threads_per_worker)))
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(waiting)), mp_context=context, initializer=_start_worker, initargs=(threads_per_worker,)
    )
    try:
        futures = {pool.submit(_train_run, run.args): run for run in waiting}
        num_done = len(runs) - len(waiting)
        for future in concurrent.futures.as_completed(futures):
            run = futures[future]
            try:
                future.result()
            except concurrent.futures.process.BrokenProcessPool:
                failed[run.run_id] = "its worker process died (out of memory, or killed)"
            except Exception as error:
                failed[run.run_id] = str(error) or type(error).__name__
            else:
                num_done += 1
            bar.update(run.flops)
            bar.set_postfix_str(f"{num_done}/{len(runs)} done", refresh=False)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        bar.close()
    if failed:
        shown = "".join(f"\n  {name}: {reason}" for name, reason in list(failed.items())[:5])
        more = f"\n  and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed; the others are kept, and the next call tries these "
            f"again:{shown}{more}\n"
            f"Each run's train.log is in {Path(runs[0].args.dump_dir).parent}/<run>/"
        )


def _start_worker(num_threads: int) -> None:
    # A worker blocks in its queue for ever when the launcher is killed with -9; this ends it within the same second.
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a launcher"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(num_threads)


def _train_run(args: Any) -> dict[str, Any]:
    from lingua_synth.train.loop import train

    return train(args, progress=False)
