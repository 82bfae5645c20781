"""What a job's sequences are: live histories, as all jobs so far, or training rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("purpose", sa.String(16), nullable=False, server_default="live"))


def downgrade() -> None:
    op.drop_column("jobs", "purpose")
