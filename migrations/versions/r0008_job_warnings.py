"""What is odd about a job's input, and whether all of its times are whole numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input_warnings", sa.Text, nullable=True))
    op.add_column("jobs", sa.Column("whole_times", sa.Boolean, nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "whole_times")
    op.drop_column("jobs", "input_warnings")
