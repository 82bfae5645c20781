"""Which versions serve: one row a decision, the last of which every API replica and worker follows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Orders by code point on both databases.
_Text = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "activations",
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("active", _Text, nullable=False),
        sa.Column("previous", _Text, nullable=True),
        sa.Column("canary", _Text, nullable=True),
        sa.Column("canary_share", sa.Float, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_activations")),
    )


def downgrade() -> None:
    op.drop_table("activations")
