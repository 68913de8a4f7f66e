"""Runs of several nodes: agents that meet, wait, give way and notice when one of them is lost."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from lingua_synth.config import build_args
from lingua_synth.files import write_json
from lingua_synth.leases import Leases
from lingua_synth.study import LaunchArgs, StudyArgs, plan_study, study_status, teams
from lingua_synth.study import agent as agents
from lingua_synth.study.agent import Agent
from lingua_synth.study.board import Limits, as_queued, read_attempts
from lingua_synth.study.node import Ended, Node, Place, run_command_words, said_error
from lingua_synth.train.preemption import LEFT


@pytest.fixture
def planned(shards, tmp_path):
    """Two runs, the smaller one first, that train on a GPU where there is one."""
    base = {
        "out": str(tmp_path / "study"),
        "sizes": ["nano-27k"],
        "budgets": [512, 1024],
        "mixtures": {"natural": {"ratios": {"natural": "1"}}},
        "sources": {"natural": {"path": shards["natural"]}},
        "train": {
            "data": {"seq_len": 32, "batch_size": 2},
            "checkpoint": {"dump": {"every": 2}},
            "synth": {
                "global_batch_tokens": 128,
                "warmup_ratio": 0.0,
                "device": "cpu",
                "evaluation": {"domains": {"near": shards["near"]}},
            },
        },
    }
    return [as_queued(run) for run in plan_study(build_args(StudyArgs, base))]


def on_gpus(run, num_gpus, name=""):
    """The run as one of so many GPUs, under another name if one is given."""
    config = dict(run.config, synth=run.config["synth"] | {"device": "auto"})
    folder = Path(run.dump_dir).parent / (name or run.run_id)
    config["dump_dir"] = str(folder)
    return dataclasses.replace(run, num_gpus=num_gpus, config=config, run_id=name or run.run_id, dump_dir=str(folder))


class FakeProcess:
    """Goes on until it is told how it ends; the leader of a run that finishes writes its result."""

    began: ClassVar[list] = []
    lock: ClassVar = threading.Lock()
    seconds: ClassVar[float] = 0.1

    def __init__(self, run, command, environment, log):
        self.run, self.command, self.log = run, command, log
        self.end = time.monotonic() + self.seconds
        self.ended = None
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        with self.lock:
            self.began.append(self)

    @property
    def member(self):
        return int(self.command[self.command.index("--node-rank") + 1]) if "--node-rank" in self.command else None

    def poll(self):
        if self.ended is None and time.monotonic() < self.end:
            return None
        if self.ended is None:
            if not self.member:
                write_json(Path(self.run.dump_dir) / "result.json", {"run_id": self.run.run_id})
            self.ended = Ended("finished")
        return self.ended

    def ask_to_leave(self):
        self.ended = Ended("left")

    def kill(self):
        self.ended = self.ended or Ended("failed", "killed")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(agents, "Process", FakeProcess)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "8,9")
    monkeypatch.setenv(teams.ADDRESS, "node-a")
    for room, name, value in (
        (agents, "LOOK_S", 0.05), (agents, "MOST_LOOK_S", 0.05), (agents, "MOST_LOOK_S_OF_JOBS", 0.05),
        (agents, "POLL_S", 0.02), (teams, "LOOK_S", 0.02), (teams, "WATCH_S", 0.02), (teams, "GRACE_S", 0.2),
    ):  # fmt: skip
        monkeypatch.setattr(room, name, value)
    monkeypatch.setattr(FakeProcess, "began", [])
    monkeypatch.setattr(FakeProcess, "seconds", 0.1)
    return FakeProcess


def build_agent(folder, runs, **more):
    args = LaunchArgs(**{"max_nodes": 4, "idle_s": 20.0, "gather_s": 20.0} | more)
    return Agent(folder, runs, args, Limits(args.max_attempts, {}), stay=False)


def together(*working):
    """Run agents at the same time; none may hang."""
    threads = [threading.Thread(target=agent.work) for agent in working]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def outcomes(folder, run):
    return [attempt.outcome for attempt in read_attempts(folder, run.run_id)]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- room ---


def test_a_node_gives_all_its_gpus_to_its_part_of_a_larger_run(planned):
    four, six, three = (on_gpus(planned[0], n) for n in (4, 6, 3))
    node = Node(["0", "1"], runs_per_gpu=2, max_nodes=2)
    assert [node.num_nodes(run) for run in (on_gpus(planned[0], 2), four, six, planned[0])] == [1, 2, 3, 1]
    assert node.can_ever_take(four) and not node.can_ever_take(six) and not node.can_ever_take(three)
    assert node.take(four) == Place(("0", "1"), 2)
    assert node.take(on_gpus(planned[0], 1)) is None
    assert not Node([], max_nodes=2).can_ever_take(four) or Node([], max_nodes=2).is_cpu_run(four)
    assert not Node(["0", "1"]).can_ever_take(four)


def test_the_command_of_a_node_says_where_the_team_meets(tmp_path):
    words = run_command_words(tmp_path / "a.yaml", 8, teams.Meeting(1, 4, "node-a", 1234))
    assert words[1:] == [
        "-m", "torch.distributed.run", "--nnodes", "4", "--node-rank", "1", "--master-addr", "node-a",
        "--master-port", "1234", "--nproc-per-node", "8", "-m", "lingua_synth.train", f"config={tmp_path / 'a.yaml'}",
    ]  # fmt: skip


# --- meeting ---


def test_agents_meet_for_a_run_that_takes_three_nodes(planned, tmp_path, fake):
    run = on_gpus(planned[1], 6)
    together(*(build_agent(tmp_path, [run]) for _ in range(3)))
    assert sorted(process.member for process in fake.began) == [0, 1, 2]
    where = {tuple(process.command[7:11]) for process in fake.began}
    assert len(where) == 1 and next(iter(where))[1] == "node-a"
    assert outcomes(tmp_path, run) == ["finished"]
    assert [path for path in (tmp_path / "launch" / "claims").iterdir() if path.is_dir()] == []
    assert not (tmp_path / "launch" / "teams" / f"{run.key}.json").exists()


def test_two_nodes_train_all_of_several_runs_that_need_both(planned, tmp_path, fake):
    runs = [on_gpus(planned[k % 2], 4, f"run-{k}") for k in range(4)]
    together(*(build_agent(tmp_path, runs) for _ in range(2)))
    assert [outcomes(tmp_path, run) for run in runs] == [["finished"]] * 4
    assert len(fake.began) == 8


def test_a_node_leaves_its_half_team_for_an_earlier_run_s(planned, tmp_path, fake):
    late, early = on_gpus(planned[0], 4, "late"), on_gpus(planned[1], 4, "early")
    claims = tmp_path / "launch" / "claims"
    agent = build_agent(tmp_path, [late, early])
    thread = threading.Thread(target=agent.work)
    with Leases(claims) as other:
        other.claim(early.key)
        thread.start()
        wait_until(lambda: teams.is_gathering(tmp_path, late))  # the early run is held, so the agent leads the late one
        wait_until(lambda: agent.waits_for == "late waits for 1 more node(s)")
        seat = teams.lead(tmp_path, early, other, 2, 60.0, lambda meeting, log: FakeProcess(early, [], {}, log))
        wait_until(lambda: (seat.poll(), not seat.is_gathering)[1])
        assert not teams.has_free_seat(tmp_path, late, other) and not other.is_held(late.key)
        wait_until(lambda: seat.poll() is not None)
        seat.close()
        other.finish(early.key)
        follower = teams.follow  # the late run's turn, with the test's node as its other half
        wait_until(
            lambda: follower(tmp_path, late, other, 60.0, lambda m, log: FakeProcess(late, [], {}, log)) is not None
        )
        thread.join(20)
    assert not thread.is_alive() and late.is_finished


def test_a_node_is_kept_free_for_a_team_that_gathers(planned, tmp_path, fake):
    team, slow, small = on_gpus(planned[1], 4, "team"), on_gpus(planned[0], 1, "slow"), on_gpus(planned[0], 1, "small")
    fake.seconds = 0.5
    first = build_agent(tmp_path, [slow, team, small])
    thread = threading.Thread(target=first.work)
    with Leases(tmp_path / "launch" / "claims") as other:
        other.claim(team.key)
        other.claim(small.key)
        thread.start()
        wait_until(lambda: len(fake.began) == 1)  # the slow run, on one of two GPUs
        seat = teams.lead(tmp_path, team, other, 2, 60.0, lambda meeting, log: FakeProcess(team, [], {}, log))
        other.release(small.key)
        wait_until(lambda: (seat.poll(), not seat.is_gathering)[1])
        wait_until(lambda: seat.poll() is not None)
        seat.close()
        other.finish(team.key)
        thread.join(20)
    assert not thread.is_alive()
    assert [process.run.run_id for process in fake.began] == ["slow", "team", "team", "small"]


def test_a_team_that_does_not_come_together_gives_way_to_smaller_runs(planned, tmp_path, fake):
    team, small = on_gpus(planned[1], 4, "team"), on_gpus(planned[0], 1, "small")
    agent = build_agent(tmp_path, [team, small], gather_s=0.2)
    together(agent)
    assert agent.finished == {"small"} and outcomes(tmp_path, team) == []
    assert [process.run.run_id for process in fake.began] == ["small"]


def test_status_says_that_a_team_gathers(planned, tmp_path, fake):
    team = on_gpus(planned[1], 4)
    folder = tmp_path / "study"
    with Leases(folder / "launch" / "claims") as other:
        other.claim(team.key)
        teams.lead(folder, team, other, 2, 60.0, lambda meeting, log: None)
        (found,) = study_status([team]).runs
        assert (found.state, found.note) == (
            "waiting",
            "its team is not complete: it takes several free nodes at a time",
        )


# --- what ends it ---


@pytest.fixture
def pair(planned, tmp_path, fake):
    """A leader's seat and its follower's, both training."""
    run = on_gpus(planned[1], 4)
    fake.seconds = 60.0
    one, two = (Leases(tmp_path / "launch" / "claims") for _ in range(2))
    one.claim(run.key)
    start = lambda meeting, log: FakeProcess(run, run_command_words(log, 2, meeting), {}, log)  # noqa: E731
    leader = teams.lead(tmp_path, run, one, 2, 60.0, start)
    follower = teams.follow(tmp_path, run, two, 60.0, start)
    assert teams.follow(tmp_path, run, two, 60.0, start) is None, "all seats are taken"
    wait_until(lambda: (leader.poll(), follower.poll(), len(fake.began) == 2)[2])
    yield run, leader, follower, two
    one.close()
    two.close()


def test_a_node_that_is_lost_is_named(pair, tmp_path):
    _, leader, _, two = pair
    two.close()  # as after a kill -9: nothing is said, the claim is dead
    ended = [None]
    wait_until(lambda: ended.append(leader.poll()) or ended[-1] is not None)
    assert ended[-1].outcome == "failed" and ended[-1].reason.startswith(f"node 1 of 2 was lost ({two.worker})")


def test_a_lost_node_is_no_failure_of_a_run_that_went_on(pair):
    run, leader, _, two = pair
    (Path(run.dump_dir) / "checkpoints" / f"{4:010d}").mkdir(parents=True)
    two.close()
    ended = [None]
    wait_until(lambda: ended.append(leader.poll()) or ended[-1] is not None)
    assert ended[-1].outcome == "left" and "was lost" in ended[-1].reason


def test_a_follower_ends_its_part_when_the_leader_is_gone(pair, tmp_path, fake):
    _, leader, follower, _ = pair
    leader.close()
    ended = [None]
    wait_until(lambda: ended.append(follower.poll()) or ended[-1] is not None)
    assert ended[-1] == Ended("member", "the leader of its team is gone")
    assert fake.began[1].ended.reason == "killed"


def test_the_error_is_found_in_the_log_of_the_node_that_had_it(pair, tmp_path):
    _, leader, follower, _ = pair
    FakeProcess.began[0].ended = Ended("failed", "exit code 1", log=["connection closed by peer"])
    FakeProcess.began[1].ended = Ended("failed", "exit code 1")
    FakeProcess.began[1].log.write_text("one line\nerror: shards/web is not on this node\n")
    assert said_error(FakeProcess.began[1].log) == "shards/web is not on this node"
    assert follower.poll() == Ended("member", "exit code 1")
    ended = leader.poll()
    assert (ended.outcome, ended.reason, ended.is_final) == ("failed", "node 1: shards/web is not on this node", True)


def test_a_signal_to_one_node_is_no_failure(pair):
    _, leader, _, _ = pair
    FakeProcess.began[0].ended = Ended("failed", "exit code 1")
    FakeProcess.began[0].log.write_text(f"x: signal 12 at step 4 of 8; {LEFT}\n")
    assert leader.poll() == Ended("left", f"x: signal 12 at step 4 of 8; {LEFT}")


# --- launch ---


def test_launch_says_what_a_run_of_several_nodes_needs(planned, tmp_path):
    runs = [dataclasses.replace(run, num_gpus=16) for run in map(lambda run: on_gpus(run, 16), planned)]
    from lingua_synth.study.launch import _with_gpus

    ask = dict(engine="slurm", gpus_per_node=8, jobs=4)
    assert _with_gpus(LaunchArgs(**ask, max_nodes=2), runs).gpus_per_node == 8
    for change, message in (
        ({}, r"a node has 8 .*launch.max_nodes, now 1"),
        ({"max_nodes": 2, "gpus_per_node": 6}, "num_gpus is then a multiple of a node's"),
        ({"max_nodes": 2, "jobs": 1}, "a run takes 2 nodes at a time, and launch.jobs is 1; raise it to 2"),
        ({"max_nodes": 2, "gpus_per_node": None}, "say with launch.gpus_per_node how many GPUs a node has"),
    ):
        with pytest.raises(ValueError, match=message):
            _with_gpus(LaunchArgs(**ask | change), runs)
