"""The doctor names every way in which Redis may contradict SQL, and mends each while everything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from asm_celery.cli.program import run as asm
from asm_celery.config import Config
from asm_celery.model import Session
from asm_celery.moves import comparison
from asm_celery.moves.coordinator import Claim
from asm_celery.states import RunStatus
from tests.conftest import environment
from tests.world import World

NOBODY = "run_" + "f" * 32


@dataclass
class Scene:
    """Two workers' slots, and four sessions: one run runs, one is rung for, two wait for room."""

    world: World
    client: redis.Redis
    running: Claim
    sessions: list[Session]
    runs: list[str]

    @property
    def root(self) -> str:
        return self.world.config.keys.root

    def do(self, verb: str, name: str, *rest: object) -> None:
        """Do a command on a key of the namespace."""
        self.client.execute_command(verb, self.root + name, *rest)  # type: ignore[no-untyped-call]

    def kinds(self) -> set[tuple[str, str]]:
        return {(one.kind, one.subject) for one in self.world.runtime.comparison.confirmed()}

    def mend(self) -> None:
        """What ``asm doctor --fix`` does."""
        for _ in range(5):
            for one in self.world.runtime.comparison.confirmed():
                self.world.runtime.comparison.mend(one)

    def beat(self) -> None:
        claim = self.running
        self.world.runtime.recovery.beat("executor", {claim.run.run_id: claim.number})

    def drain(self) -> list[str]:
        """End the running run and all that follow; return them in the order of their starts."""
        order = [self.running.run.run_id]
        self.world.finish(self.running)
        while self.world.tick() and self.world.bells.rung:
            claim = self.world.try_start()
            if claim is not None:
                order.append(claim.run.run_id)
                self.world.finish(claim)
        return order


@pytest.fixture
def scene(sqlite_config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Nothing else moves here, so two looks need no pause between them."""
    monkeypatch.setattr(comparison, "_PAUSE_S", 0.01)
    world = World(sqlite_config.model_copy(update={"lease_s": 60.0, "beat_s": 1.0}), slots=1)
    world.runtime.limiter.set_limits(max_parallel_runs=2)
    sessions = [world.session() for _ in range(4)]
    runs = [world.submit(session) for session in sessions for _ in range(2)]
    running = world.start()
    client = redis.Redis.from_url(sqlite_config.redis_url)
    made = Scene(world, client, running, sessions, runs)
    made.beat()
    yield made
    client.close()
    world.close()


def _lose_a_waiting_run(scene: Scene) -> tuple[str, str]:
    scene.world.runtime.queue.finish(scene.runs[5])
    return "unknown", scene.runs[5]


def _know_a_run_that_is_over(scene: Scene) -> tuple[str, str]:
    scene.do("SADD", "known", NOBODY)
    return "over", NOBODY


def _take_a_limiter_slot_for_nobody(scene: Scene) -> tuple[str, str]:
    scene.do("ZADD", "leases", 1, NOBODY)
    return "held_by_nothing", NOBODY


def _take_a_session_slot_for_nobody(scene: Scene) -> tuple[str, str]:
    scene.do("SADD", "active", "ses_nobody")
    return "held_by_nothing", "ses_nobody"


def _drop_the_lease_of_a_running_run(scene: Scene) -> tuple[str, str]:
    run_id, queue = scene.running.run.run_id, scene.world.config.default_queue
    scene.do("HDEL", f"run:{run_id}", "claim", "executor", "nonce", "beat")
    scene.do("HSET", f"run:{run_id}", "state", "waiting")
    scene.do("ZREM", "leases", run_id)
    scene.do("SREM", f"load:{queue}", run_id)
    scene.do("DEL", f"held:{scene.sessions[0].session_id}")
    scene.do("SREM", "active", scene.sessions[0].session_id)
    return "running_without_lease", run_id


def _lease_under_another_claim(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", f"run:{scene.running.run.run_id}", "claim", 7)
    return "other_claim", scene.running.run.run_id


def _count_claims_that_never_were(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", f"run:{scene.runs[6]}", "claims", 41)
    return "other_claim", scene.runs[6]


def _garble_a_run(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", f"run:{scene.runs[5]}", "claims", "many")
    return "garbled", scene.runs[5]


def _delay_a_run_for_ever(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", f"run:{scene.runs[4]}", "not_before", 9_000_000_000_000)
    return "garbled", scene.runs[4]


def _lose_a_lease_from_the_limiter(scene: Scene) -> tuple[str, str]:
    scene.do("ZREM", "leases", scene.running.run.run_id)
    return "lease_unlisted", scene.running.run.run_id


def _lose_a_place_in_a_session(scene: Scene) -> tuple[str, str]:
    scene.do("ZREM", f"open:{scene.sessions[2].session_id}", scene.runs[5])
    return "unlisted", scene.runs[5]


def _hold_a_slot_with_a_waiting_run(scene: Scene) -> tuple[str, str]:
    scene.do("ZADD", "leases", 1, scene.runs[5])
    return "held_by_nothing", scene.runs[5]


def _pause_a_session_behind_sql(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", f"session:{scene.sessions[2].session_id}", "state", "paused", "version", 99)
    return "session_differs", scene.runs[4]


def _lose_a_session_from_its_line(scene: Scene) -> tuple[str, str]:
    scene.do("DEL", f"line:{scene.world.config.default_queue}:new")
    return "unplaced", scene.runs[4]


def _line_up_nobody(scene: Scene) -> tuple[str, str]:
    scene.do("ZADD", f"line:{scene.world.config.default_queue}:new", -1, "ses_nobody")
    return "held_by_nothing", "ses_nobody"


def _keep_a_slot_with_a_run_that_is_over(scene: Scene) -> tuple[str, str]:
    session = scene.sessions[3].session_id
    scene.do("SADD", f"held:{session}", NOBODY)
    scene.do("SADD", "active", session)
    return "held_by_nothing", NOBODY


def _stand_before_a_session_with_a_run_that_is_over(scene: Scene) -> tuple[str, str]:
    scene.do("ZADD", f"open:{scene.sessions[3].session_id}", 0, NOBODY)
    return "held_by_nothing", NOBODY


def _change_a_limit_behind_sql(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", "settings", "runs", "lots")
    return "limits_differ", "settings"


def _hold_behind_sql(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", "settings", "hold", "held", "hold_version", 99)
    return "hold_differs", "settings"


def _announce_a_worker_that_never_was(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", "executors", "ghost", "5 ghost")
    scene.do("ZADD", f"workers:{scene.world.config.default_queue}", 9_000_000_000_000, "ghost")
    return "capacity_of_nobody", "ghost"


def _leave_a_session_without_runs(scene: Scene) -> tuple[str, str]:
    scene.do("HSET", "session:ses_nobody", "slots", 1)
    return "held_by_nothing", "ses_nobody"


def _put_another_type(scene: Scene) -> tuple[str, str]:
    scene.do("DEL", "leases")
    scene.do("SET", "leases", "a string")
    return "not_ours", "leases"


def _put_a_strange_key(scene: Scene) -> tuple[str, str]:
    scene.do("SET", "strange", "thing")
    return "not_ours", "strange"


SEEDS: list[Callable[[Scene], tuple[str, str]]] = [
    _lose_a_waiting_run,
    _know_a_run_that_is_over,
    _take_a_limiter_slot_for_nobody,
    _take_a_session_slot_for_nobody,
    _drop_the_lease_of_a_running_run,
    _lease_under_another_claim,
    _count_claims_that_never_were,
    _garble_a_run,
    _delay_a_run_for_ever,
    _lose_a_lease_from_the_limiter,
    _lose_a_place_in_a_session,
    _hold_a_slot_with_a_waiting_run,
    _pause_a_session_behind_sql,
    _lose_a_session_from_its_line,
    _line_up_nobody,
    _keep_a_slot_with_a_run_that_is_over,
    _stand_before_a_session_with_a_run_that_is_over,
    _change_a_limit_behind_sql,
    _hold_behind_sql,
    _announce_a_worker_that_never_was,
    _leave_a_session_without_runs,
    _put_another_type,
    _put_a_strange_key,
]


# of different subjects: of one run, one thing is named at a time
AT_ONCE: list[Callable[[Scene], tuple[str, str]]] = [
    _lose_a_waiting_run,
    _know_a_run_that_is_over,
    _take_a_limiter_slot_for_nobody,
    _take_a_session_slot_for_nobody,
    _drop_the_lease_of_a_running_run,
    _count_claims_that_never_were,
    _delay_a_run_for_ever,
    _change_a_limit_behind_sql,
    _hold_behind_sql,
    _announce_a_worker_that_never_was,
    _leave_a_session_without_runs,
]


# what stops nothing, and is not looked for again and again
BY_DOCTOR = [
    _announce_a_worker_that_never_was,
    _leave_a_session_without_runs,
    _put_a_strange_key,
]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.__name__.strip("_"))
def test_a_difference_is_named_and_mended(scene: Scene, seed: Callable[[Scene], tuple[str, str]]) -> None:
    """The doctor reports it by kind and subject; mended, nothing differs, and all runs end in order."""
    assert set() == scene.kinds()
    expected = seed(scene)

    assert expected in scene.kinds()
    scene.mend()

    assert set() == scene.kinds()
    scene.beat()
    assert RunStatus.RUNNING == scene.world.run(scene.running.run.run_id).status
    started = scene.drain()
    assert sorted(scene.runs) == sorted(started)
    for at in range(0, len(scene.runs), 2):
        assert scene.runs[at : at + 2] == [run_id for run_id in started if run_id in scene.runs[at : at + 2]]


def test_doctor_fix_says_what_it_did(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten at once: reported as JSON, refused without ``--yes``, mended with it, and then there is none."""
    for name, value in environment(scene.world.config).items():
        monkeypatch.setenv(name, value)
    planted = {seed(scene) for seed in AT_ONCE}

    assert 0 == int(asm(["doctor", "--json"]))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = next(one["facts"]["differences"] for one in told if one["name"] == "difference")
    assert planted <= {(one["kind"], one["subject"]) for one in found}

    assert 2 == int(asm(["doctor", "--fix", "--json"]))
    capsys.readouterr()
    assert 0 == int(asm(["doctor", "--fix", "--yes", "--json"]))
    mended = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["kind"] for one in found} <= {one["kind"] for one in mended if one["object"] == "mended"}
    assert set() == scene.kinds()


@pytest.mark.parametrize(
    "seed", [seed for seed in SEEDS if seed not in BY_DOCTOR], ids=lambda seed: seed.__name__.strip("_")
)
def test_the_repair_loop_mends_what_stops_work_without_a_doctor(
    scene: Scene, seed: Callable[[Scene], tuple[str, str]]
) -> None:
    """What runs goes on, what waits starts, and nothing stays different."""
    seed(scene)

    for _ in range(3):
        scene.client.delete(f"{scene.root}comparing")
        scene.world.runtime.recovery.repair()
    scene.world.announce(1)
    scene.beat()

    assert sorted(scene.runs) == sorted(scene.drain())
    assert set() == scene.kinds()
