"""Claims on work in a shared folder: one holder at a time, and what dies is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from lingua_synth.leases import Leases, living_claims, workers_here


def test_one_claim_at_a_time_and_the_next_has_the_next_number(tmp_path):
    with Leases(tmp_path) as ours, Leases(tmp_path) as theirs:
        assert ours.claim("a") == 1 and ours.holds("a")
        assert theirs.claim("a") is None and theirs.is_held("a")
        ours.release("a")
        assert not theirs.is_held("a")
        assert theirs.claim("a") == 2
        assert not ours.holds("a") and theirs.earlier_claims("a") == [1]
        assert ours.claim("b") == 1


def test_a_claim_of_another_machine_ends_with_its_time(tmp_path):
    with Leases(tmp_path, lease_s=0.4) as leases:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1").write_text(json.dumps({"worker": "w", "host": "elsewhere", "pid": 1}))
        assert leases.claim("a") is None
        time.sleep(0.5)
        assert leases.claim("a") == 2
        time.sleep(0.8)  # kept alive by its thread
        assert leases.holds("a") and leases.is_held("a")


def test_a_claim_of_a_dead_process_of_this_machine_ends_at_once(tmp_path):
    words = "import os, sys; from pathlib import Path; from lingua_synth.leases import Leases\n"
    words += "leases = Leases(Path(sys.argv[1])); leases.claim('a'); os.kill(os.getpid(), 9)"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", words, str(tmp_path)], env={**os.environ, "PYTHONPATH": root}, timeout=60)
    with Leases(tmp_path) as leases:
        assert leases.claim("a") == 2
        assert leases.num_workers() == 1


def test_a_killed_process_whose_parent_has_not_asked_holds_nothing(tmp_path):
    words = "import os, sys; from pathlib import Path; from lingua_synth.leases import Leases\n"
    words += "leases = Leases(Path(sys.argv[1])); leases.claim('a'); os.kill(os.getpid(), 9)"
    root = str(Path(__file__).parents[2])
    killed = subprocess.Popen([sys.executable, "-c", words, str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still in the table of processes
    with Leases(tmp_path) as leases:
        assert not leases.is_held("a") and living_claims(tmp_path) == {}
        assert leases.claim("a") == 2
    killed.wait()


def test_many_threads_claim_each_shard_once(tmp_path):
    won = []

    def work():
        with Leases(tmp_path) as leases:
            won.extend(name for name in map(str, range(40)) if leases.claim(name))
            barrier.wait()

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=int) == [str(i) for i in range(40)]


def test_anybody_may_look_without_leaving_a_trace(tmp_path):
    assert living_claims(tmp_path / "gone") == {}
    with Leases(tmp_path, lease_s=30) as leases:
        for name in ("held", "given-back"):
            leases.claim(name)
        leases.release("given-back")
        for name, age in (("fresh", 10), ("stale", 90)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1").write_text(json.dumps({"worker": name, "host": "elsewhere", "pid": 1}))
            os.utime(tmp_path / name / "1", (time.time() - age,) * 2)
        before = sorted(tmp_path.rglob("*"))
        held = living_claims(tmp_path, lease_s=30)
        assert {name: holder["worker"] for name, holder in held.items()} == {"held": leases.worker, "fresh": "fresh"}
        assert workers_here(tmp_path) == [leases.worker]
        assert sorted(tmp_path.rglob("*")) == before
    assert set(living_claims(tmp_path, lease_s=30)) == {"fresh"} and workers_here(tmp_path) == []


def test_work_that_others_finish_at_the_same_moment_is_not_ours(tmp_path, monkeypatch):
    """Between two calls of a claim another process may remove the folder of claims, whose work is done."""
    with Leases(tmp_path) as leases:

        def gone(path, *mode):
            raise FileExistsError(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", gone)
            assert leases.claim("a") is None
        assert leases.claim("a") == 1


def test_processes_that_leave_while_another_comes_do_not_disturb_it(tmp_path, monkeypatch):
    (tmp_path / ".left-long-ago").write_text("{}")
    (tmp_path / ".folder").mkdir()
    real = Path.read_text

    def leaving(path, *args, **named):
        if path.name == ".left-long-ago":
            path.unlink(missing_ok=True)
        return real(path, *args, **named)

    monkeypatch.setattr(Path, "read_text", leaving)
    with Leases(tmp_path) as leases:
        assert leases.claim("a") == 1
        (tmp_path / ".left-long-ago").write_text("{}")
        assert workers_here(tmp_path) == [leases.worker]


def test_a_look_at_many_claims_asks_the_file_systems_clock_once(tmp_path, monkeypatch):
    for i in range(50):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "1").write_text(json.dumps({"worker": "w", "host": "elsewhere", "pid": 1}))
    touched = []
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda path, *times: (touched.append(path), real(path, *times))[1])
    with Leases(tmp_path) as leases:
        assert all(leases.is_held(f"{i}") for i in range(50))
        assert len(touched) <= 2
        # An hour ahead of this machine's clock, as another machine's file system may be.
        ahead = time.time() + 3600
        monkeypatch.setattr(os, "utime", lambda path, times=(ahead, ahead): real(path, times))
        time.sleep(1.1)
        assert not leases.is_held("0")
