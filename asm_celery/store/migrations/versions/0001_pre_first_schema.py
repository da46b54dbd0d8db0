"""The first schema: sessions, counters, runs, events, agents, executors, settings, control history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "agents",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("stop_grace_s", sa.Float(), nullable=True),
        sa.Column("run_timeout", sa.Float(), nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=True),
        sa.Column("resumable", sa.Integer(), server_default="0", nullable=False),
        sa.Column("capabilities", sa.Text(), server_default="[]", nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "control_operations",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("operation_id"),
    )
    op.create_index("control_operations_run", "control_operations", ["run_id", "at"], unique=False)
    op.create_table(
        "executors",
        sa.Column("executor", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("beat", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("executor"),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("max_concurrent_runs", sa.Integer(), nullable=False),
        sa.Column("max_queued_runs", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("max_concurrent_runs >= 1", name="sessions_slots"),
        sa.CheckConstraint("max_queued_runs >= 0", name="sessions_bound"),
        sa.PrimaryKeyConstraint("session_id"),
    )
    op.create_index("sessions_created", "sessions", ["created_at", "session_id"], unique=False)
    op.create_table(
        "settings",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "events",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), server_default="{}", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("schema_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("sequence >= 1", name="events_sequence"),
        sa.PrimaryKeyConstraint("session_id", "sequence"),
        sa.UniqueConstraint("event_id"),
    )
    op.create_index("events_run", "events", ["run_id", "sequence"], unique=False)
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("input_digest", sa.Text(), nullable=False),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("token_usage", sa.Text(), server_default="{}", nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("turn_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claim_nonce", sa.Text(), nullable=True),
        sa.Column("executor", sa.Text(), nullable=True),
        sa.Column("event_position", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("run_timeout", sa.Float(), nullable=True),
        sa.Column("queue_timeout", sa.Float(), nullable=True),
        sa.Column("stop_requested", sa.Text(), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("pause_version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("queue_deadline", sa.BigInteger(), nullable=True),
        sa.Column("deadline", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(ended_at IS NULL) = (status IN ('pending', 'running'))", name="runs_ended"),
        sa.CheckConstraint("paused_at IS NULL OR status IN ('pending', 'running')", name="runs_paused"),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'completed', 'failed', 'cancelled', 'interrupted', 'timeout')",
            name="runs_status",
        ),
        sa.CheckConstraint(
            "stop_requested IS NULL OR stop_requested IN ('cancel', 'interrupt', 'timeout')", name="runs_stop"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
        ),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("session_id", "position", name="runs_position"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "runs_executor",
        "runs",
        ["executor"],
        unique=False,
        postgresql_where=sa.text("status = 'running'"),
        sqlite_where=sa.text("status = 'running'"),
    )
    op.create_index(
        "runs_key",
        "runs",
        ["session_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "runs_open",
        "runs",
        ["session_id", "position"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'running')"),
        sqlite_where=sa.text("status IN ('pending', 'running')"),
    )
    op.create_index(
        "runs_queue_deadline",
        "runs",
        ["queue_deadline"],
        unique=False,
        postgresql_where=sa.text("status = 'pending' AND queue_deadline IS NOT NULL"),
        sqlite_where=sa.text("status = 'pending' AND queue_deadline IS NOT NULL"),
    )
    op.create_index(
        "runs_deadline",
        "runs",
        ["deadline"],
        unique=False,
        postgresql_where=sa.text("status = 'running' AND deadline IS NOT NULL"),
        sqlite_where=sa.text("status = 'running' AND deadline IS NOT NULL"),
    )
    op.create_index(
        "runs_open_id",
        "runs",
        ["run_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'running')"),
        sqlite_where=sa.text("status IN ('pending', 'running')"),
    )
    op.create_table(
        "session_counters",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_position", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("state_version", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state IN ('active', 'paused', 'draining', 'completed')", name="session_counters_state"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
        ),
        sa.PrimaryKeyConstraint("session_id"),
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Drop every table: all sessions, runs and events are gone."""
    for table in (
        "session_counters",
        "runs",
        "events",
        "sessions",
        "agents",
        "executors",
        "settings",
        "control_operations",
    ):
        op.drop_table(table)
