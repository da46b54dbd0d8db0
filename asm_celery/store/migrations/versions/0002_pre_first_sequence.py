"""Where the log of a session begins: retention removes prefixes and says so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column with a default, which older code does not look at."""
    op.add_column(
        "session_counters",
        sa.Column("first_sequence", sa.BigInteger(), server_default="1", nullable=False),
    )


def downgrade() -> None:
    """Forget it; logs that were pruned then begin without a word."""
    op.drop_column("session_counters", "first_sequence")
