"""The guards of the protocol: what each prevents, how it is taken away, and the test that misses it then.

The scripts' guards and repairs that only an interleaving misses are in `tests/model/mutants.py`, where a search
over all interleavings catches each.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MOVES: Final = "asm_celery.store.run_moves"
COORDINATOR: Final = "asm_celery.moves.coordinator"
SUBMISSION: Final = "asm_celery.moves.submission"
RULES: Final = "tests/guards/test_rules.py"
SILENCE: Final = "tests/unit/test_silence.py"
# these stand in the statements of PostgreSQL only
STROKE_MOVES: Final = "asm_celery.store.stroke_moves"
STROKES: Final = "tests/guards/test_strokes.py"


class Guard(NamedTuple):
    """A guard: where it stands, its words, what is left without it, and the test that fails then."""

    place: str
    old: str
    new: str
    test: str
    path: str = RULES


GUARDS: Final[dict[str, Guard]] = {
    # the moves of a single statement
    "submit at once: room": Guard(
        STROKE_MOVES,
        '            depth < bindparam("p_room", type_=BigInteger),\n',
        "",
        "test_a_full_session_takes_no_run",
        STROKES,
    ),
    "submit at once: the session takes runs": Guard(
        STROKE_MOVES,
        "            or_(*(table.c.state == state.value for state in ACCEPTING)),\n",
        "",
        "test_a_draining_session_takes_no_run",
        STROKES,
    ),
    "submit at once: nobody wrote meanwhile": Guard(
        STROKE_MOVES,
        "            seen.c.last_sequence == table.c.last_sequence,\n",
        "",
        "test_a_count_from_before_the_wait_is_not_trusted",
        STROKES,
    ),
    "start at once: the session starts runs": Guard(
        STROKE_MOVES,
        ".where(session_counters.c.session_id == moved.c.session_id, starts)",
        ".where(session_counters.c.session_id == moved.c.session_id)",
        "test_a_pause_that_is_being_written_holds_back_what_would_start",
        STROKES,
    ),
    "start at once: as a whole": Guard(
        STROKE_MOVES,
        ".outerjoin(drawn, true())",
        ".join(drawn, true())",
        "test_a_pause_that_is_being_written_holds_back_what_would_start",
        STROKES,
    ),
    "start at once: its agent": Guard(
        STROKE_MOVES,
        '            runs.c.agent == bindparam("p_agent", type_=Text),\n',
        "",
        "test_a_run_of_another_agent_is_not_started",
        STROKES,
    ),
    # SQL: the fence and the position of every write of an attempt
    "append: fence": Guard(
        MOVES,
        "_kept(_HELD, _AT_POSITION, event_position",
        "_kept(_AT_POSITION, event_position",
        "test_an_append_of_an_older_claim_is_refused",
    ),
    "append: position": Guard(
        MOVES,
        "_kept(_HELD, _AT_POSITION, event_position",
        "_kept(_HELD, event_position",
        "test_an_append_is_refused_at_another_position",
    ),
    "finish: fence": Guard(
        MOVES,
        "        _HELD,\n        stop,",
        "        stop,",
        "test_an_end_of_an_older_claim_is_refused",
    ),
    "finish: position": Guard(
        MOVES,
        "        stop,\n        *([_AT_POSITION] if has_position else []),",
        "        stop,",
        "test_an_end_is_refused_at_another_position",
    ),
    "finish: no stop was asked": Guard(
        MOVES, "        stop,\n", "", "test_a_run_that_was_asked_to_stop_is_not_completed"
    ),
    "finish: whose end": Guard(
        COORDINATOR,
        "is_ours = run is not None and tx.runs.nonce_of(run.run_id) == claim.nonce",
        "is_ours = True",
        "test_an_end_of_an_older_claim_is_not_taken_for_the_present_one",
    ),
    "requeue: fence": Guard(
        MOVES,
        "        _HELD,\n        runs.c.stop_requested.is_(None),",
        "        runs.c.stop_requested.is_(None),",
        "test_a_failure_of_an_older_claim_gives_nothing_back",
    ),
    "requeue: no stop was asked": Guard(
        MOVES,
        "        runs.c.stop_requested.is_(None),\n        *([runs.c.attempt",
        "        *([runs.c.attempt",
        "test_a_run_that_was_asked_to_stop_is_not_repeated",
    ),
    "requeue: attempts left": Guard(
        MOVES,
        "        *([runs.c.attempt < runs.c.max_attempts] if counts else []),\n",
        "",
        "test_the_last_attempt_is_not_given_back",
    ),
    # SQL: the only door to execution
    "claim: waits": Guard(
        MOVES,
        "        _WAITS,\n        runs.c.claims == claim - 1,",
        "        runs.c.claims == claim - 1,",
        "test_a_running_run_is_not_claimed",
    ),
    "claim: number": Guard(
        MOVES, "        runs.c.claims == claim - 1,\n", "", "test_a_claim_names_the_next_number"
    ),
    "claim: due": Guard(MOVES, "        _IS_DUE,\n", "", "test_a_run_in_back_off_is_not_claimed"),
    "claim: a due time that cannot be": Guard(
        MOVES,
        "    runs.c.not_before > instant_in(round(LONGEST_BACKOFF_S * 1_000_000)),\n",
        "",
        "test_a_back_off_that_a_jumped_clock_has_written_is_over",
    ),
    "claim: order and slots": Guard(
        MOVES, "        lower < slots,\n", "", "test_a_run_behind_an_open_one_is_not_claimed"
    ),
    "claim: no stop was asked": Guard(
        MOVES,
        "        runs.c.stop_requested.is_(None),\n        _IS_DUE,",
        "        _IS_DUE,",
        "test_a_waiting_run_that_was_asked_to_stop_is_not_claimed",
    ),
    "claim: state of the session": Guard(
        COORDINATOR,
        "[started], states=STARTABLE)",
        "[started])",
        "test_a_run_of_a_paused_session_is_not_started",
    ),
    "claim: whose commit": Guard(
        COORDINATOR,
        "run is None or tx.runs.nonce_of(run_id) != nonce:",
        "run is None:",
        "test_a_claim_of_another_delivery_is_not_taken_for_ones_own",
    ),
    "late claim: taken over": Guard(
        COORDINATOR,
        'return word == "held"',
        "return True",
        "test_a_claim_whose_lease_was_taken_over_is_not_held",
    ),
    "late claim: ended by its taker": Guard(
        COORDINATOR,
        "tx.runs.nonce_of(run_id) == claim.nonce",
        "True",
        "test_a_claim_whose_run_was_ended_meanwhile_is_not_held",
    ),
    # how a run is stopped, in SQL
    "stop: running": Guard(
        MOVES,
        "        runs.c.status == _RUNNING,\n        runs.c.stop_requested",
        "        runs.c.stop_requested",
        "test_a_finished_run_is_not_asked_to_stop",
    ),
    "stop: set once": Guard(
        MOVES,
        "        runs.c.stop_requested.is_(None),\n        stop_requested=",
        "        stop_requested=",
        "test_the_first_request_to_stop_stays",
    ),
    "stop: of this claim only": Guard(
        "asm_celery.moves.stopping",
        "only_claim is not None and only_claim != _present_claim(run)",
        "False",
        "test_a_stop_of_a_claim_that_has_passed_stops_nothing",
    ),
    "withdraw: waits": Guard(
        MOVES,
        '        _WAITS,\n        status=bindparam("p_status", type_=Text),\n        stop_requested',
        '        status=bindparam("p_status", type_=Text),\n        stop_requested',
        "test_a_running_run_is_not_withdrawn",
    ),
    # what is admitted, and where a session may go
    "submit: key": Guard(
        SUBMISSION,
        "            self._refuse_known_key(tx, session_id, options.idempotency_key, digest(text))\n",
        "",
        "test_a_key_is_one_run",
    ),
    "submit: lost answer": Guard(
        SUBMISSION,
        "            accepted = self._look_up(run.run_id)\n",
        "            accepted = None\n",
        "test_a_lost_answer_to_a_submit_is_looked_up",
    ),
    "submit: room": Guard(
        SUBMISSION,
        "            refuse_full(session, options.on_busy, depth)\n",
        "",
        "test_a_full_session_refuses",
    ),
    "submit: state of the session": Guard(
        SUBMISSION,
        "            refuse_closed(session_id, counter.state)\n",
        "",
        "test_a_completed_session_refuses",
    ),
    "complete: no open run": Guard(
        "asm_celery.moves.control",
        "target is SessionStatus.COMPLETED and (depth",
        "False and (depth",
        "test_a_session_with_open_runs_is_not_completed",
    ),
    "append events: the run is open": Guard(
        SUBMISSION,
        "            refuse_ended(tx, session.session_id, {event.run_id for event in fresh if event.run_id})\n",
        "",
        "test_an_ended_run_takes_no_more_events",
    ),
    "session: sources of a move": Guard(
        "asm_celery.store.sessions",
        ", table.c.state.in_([source.value for source in sources]))",
        ")",
        "test_a_session_moves_only_where_the_table_says",
    ),
    "hold: compare-and-set": Guard(
        "asm_celery.store.operators",
        "settings.c.key == key, settings.c.value == old)",
        "settings.c.key == key)",
        "test_a_setting_that_has_changed_is_not_swapped",
    ),
    # verdicts
    "lose: void the signature": Guard(
        COORDINATOR,
        '[], {"claim_nonce": None})',
        "[], {})",
        "test_an_end_of_an_older_claim_is_not_taken_for_the_present_one",
    ),
    "lose: executor": Guard(
        COORDINATOR,
        "if (run.claims, run.executor) != (claim, executor):",
        "if run.claims != claim:",
        "test_an_attempt_is_lost_with_its_own_executor_only",
    ),
    "lose: use up a number that was never claimed": Guard(
        COORDINATOR,
        "RunStatus.PENDING:\n                tx.runs.void(run_id, claim)\n",
        "RunStatus.PENDING:\n                pass\n",
        "test_a_number_that_was_taken_over_is_never_claimed",
    ),
    "recall: use up a number that was never claimed": Guard(
        COORDINATOR,
        "is_used_up = tx.runs.void(run_id, claim)",
        "is_used_up = False",
        "test_a_claim_that_was_recalled_in_vain_is_never_made",
    ),
    "restore: use up the numbers that were granted": Guard(
        "asm_celery.moves.restore",
        "        self._void()\n",
        "",
        "test_a_number_that_was_granted_before_a_restore_is_never_claimed",
    ),
    "orphans: two looks": Guard(
        "asm_celery.moves.recovery",
        "in candidates & self._orphans:",
        "in candidates:",
        "test_an_attempt_is_an_orphan_at_the_second_look_only",
    ),
    "silence: unbroken observation": Guard(
        "asm_celery.moves.silence",
        "            self._seen.clear()\n",
        "            pass\n",
        "test_a_paused_observer_starts_all_counts_anew",
        SILENCE,
    ),
    "silence: the second witness": Guard(
        "asm_celery.moves.silence",
        "        if voucher is None:\n            return is_silent\n",
        "        return is_silent\n",
        "test_a_beat_in_sql_vouches_for_a_run_that_redis_does_not_hear",
        SILENCE,
    ),
    # scripts
    "begin: claim number": Guard(
        "begin.lua",
        "if lease[2] ~= ARGV[2] then return { 'spare' } end",
        "",
        "test_a_doorbell_of_another_claim_begins_nothing",
    ),
    "begin: nonce": Guard(
        "begin.lua",
        "lease[3] == ARGV[4] and { 'again', lease[4] } or { 'spare' }",
        "{ 'again', lease[4] }",
        "test_a_lease_begins_for_one_delivery",
    ),
    "take over: claim number": Guard(
        "take_over.lua", " or lease[2] ~= ARGV[2]", "", "test_a_lease_that_has_changed_is_not_taken_over"
    ),
    "take over: executor": Guard(
        "take_over.lua", " or lease[3] ~= ARGV[3]", "", "test_a_lease_that_has_changed_is_not_taken_over"
    ),
    "take over: beat": Guard(
        "take_over.lua", " or lease[4] ~= ARGV[4]", "", "test_a_lease_that_has_changed_is_not_taken_over"
    ),
    "give back: claim number": Guard(
        "give_back.lua", " and lease[2] == ARGV[2]", "", "test_a_lease_of_another_is_not_given_back"
    ),
    "give back: executor": Guard(
        "give_back.lua", " and lease[3] == ARGV[3]", "", "test_a_lease_of_another_is_not_given_back"
    ),
    "renew: holder": Guard(
        "renew.lua",
        "lease[3] == ARGV[1] and 'held' or 'taken'",
        "'held'",
        "test_a_beat_of_another_executor_renews_nothing",
    ),
    "sweep: what has a hash stays": Guard(
        "sweep.lua",
        "if redis.call('EXISTS', run_key(run)) == 0 then purge(run, session) end",
        "purge(run, session)",
        "test_sweeping_a_session_leaves_what_it_rightly_holds",
    ),
    "gate: open": Guard(
        "promote.lua",
        "  if not gate_open() then return granted end\n",
        "",
        "test_a_cold_redis_grants_nothing",
    ),
    "gate: of this server process": Guard(
        "gate.lua",
        "return named and named == server_id() and",
        "return named and",
        "test_a_gate_of_another_server_process_is_closed",
    ),
    "gate: the leases are all there": Guard(
        "gate.lua",
        " and redis.call('ZCARD', LEASES) >= redis.call('SCARD', ACTIVE)",
        "",
        "test_a_redis_that_lost_its_leases_grants_nothing",
    ),
    "restore: one at a time": Guard(
        "begin_restore.lua",
        "if restorer and restorer ~= ARGV[1] then",
        "if false then",
        "test_one_restorer_restores",
    ),
    "restore: its owner opens": Guard(
        "open_gate.lua",
        "if redis.call('GET', RESTORING) ~= ARGV[1] then",
        "if false then",
        "test_one_restorer_restores",
    ),
    "state: version": Guard(
        "session_state.lua",
        "if tonumber(ARGV[3]) > tonumber(version) then",
        "if true then",
        "test_an_older_state_of_a_session_is_not_kept",
    ),
    "state: version in enqueue": Guard(
        "conform.lua",
        "if tonumber(ARGV[first + 3]) >= version then",
        "if true then",
        "test_an_older_state_does_not_come_with_a_run",
    ),
    "hold: version": Guard(
        "hold.lua",
        "if tonumber(ARGV[2]) >= tonumber(known or '0') then",
        "if true then",
        "test_an_older_hold_is_not_kept",
    ),
    "hold: nothing is granted": Guard(
        "promote.lua",
        "if active_runs() >= max_runs or held then break end",
        "if active_runs() >= max_runs then break end",
        "test_a_held_installation_grants_nothing",
    ),
    "conform: what is newer stays": Guard(
        "conform.lua",
        "elseif state == 'waiting' or tonumber(known[3]) <= claims then",
        "else",
        "test_what_redis_knows_under_a_higher_number_stays",
    ),
    "limiter: runs": Guard(
        "promote.lua",
        "if active_runs() >= max_runs or held then break end",
        "if held then break end",
        "test_no_more_than_the_limit_is_leased",
    ),
    "limiter: sessions": Guard(
        "promote.lua",
        "longest_ready(active_sessions() < max_sessions)",
        "longest_ready(true)",
        "test_no_more_sessions_than_the_limit_have_work_in_flight",
    ),
    "limiter: capacity": Guard(
        "promote.lua",
        "load < slots and 1 or load < slots + spare and 2 or 3",
        "1",
        "test_no_more_is_leased_than_workers_can_take",
    ),
    "limiter: callers": Guard(
        "limiter_acquire.lua",
        "  if active >= limit then return",
        "  if false then return",
        "test_a_full_limiter_refuses_a_caller",
    ),
    "limiter: holder": Guard(
        "limiter_renew.lua",
        "  if held then redis.call('ZADD', slots, 'XX', now",
        "  do held = true redis.call('ZADD', slots, now",
        "test_a_caller_slot_that_ended_is_not_revived",
    ),
    "place: first runs": Guard(
        "place.lua",
        "open_key(session), 0, slots - 1)",
        "open_key(session), 0, -1)",
        "test_only_the_first_runs_of_a_session_are_leased",
    ),
    "place: state of the session": Guard(
        "place.lua",
        "if state == 'paused' or state == 'completed' then return nil, nil end",
        "",
        "test_a_run_of_a_paused_session_is_not_leased",
    ),
}
