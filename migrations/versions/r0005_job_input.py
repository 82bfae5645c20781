"""How a job's input is laid out and where it lies, where its URI does not say all of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input_description", sa.Text, nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "input_description")
