"""Jobs, their chunks and bad rows, and the mapping dictionaries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Orders by code point on both databases.
_Text = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("target_domain", _Text, nullable=False),
        sa.Column("model_version", _Text, nullable=False),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("on_unknown", sa.String(8), nullable=False),
        sa.Column("source_uri", sa.Text, nullable=True),
        sa.Column("source_name", sa.Text, nullable=False),
        sa.Column("source_format", sa.String(16), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=True),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_at_ms", sa.BigInteger, nullable=True),
        sa.Column("started_at_ms", sa.BigInteger, nullable=True),
        sa.Column("finished_at_ms", sa.BigInteger, nullable=True),
        sa.Column("pruned_at_ms", sa.BigInteger, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("num_chunks", sa.Integer, nullable=True),
        sa.Column("chunks_done", sa.Integer, nullable=False),
        sa.Column("rows_read", sa.BigInteger, nullable=False),
        sa.Column("rows_bad", sa.BigInteger, nullable=False),
        sa.Column("sequences", sa.BigInteger, nullable=False),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("replaced", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.BigInteger, nullable=False),
        sa.Column("unknown", sa.BigInteger, nullable=False),
        sa.Column("truncated", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_jobs_idempotency_key")),
    )
    op.create_index(op.f("ix_jobs_state_job_id"), "jobs", ["state", "job_id"])
    op.create_table(
        "chunks",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("chunk_index", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("num_rows", sa.Integer, nullable=False),
        sa.Column("input_name", sa.Text, nullable=False),
        sa.Column("output_name", sa.Text, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_at_ms", sa.BigInteger, nullable=True),
        sa.Column("last_error", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("job_id", "chunk_index", name=op.f("pk_chunks")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_chunks_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_table(
        "bad_rows",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("line", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "line", name=op.f("pk_bad_rows")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_bad_rows_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_table(
        "dictionaries",
        sa.Column("dictionary_id", sa.Integer, nullable=False),
        sa.Column("target_domain", _Text, nullable=False),
        sa.Column("model_version", _Text, nullable=False),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("dictionary_id", name=op.f("pk_dictionaries")),
        sa.UniqueConstraint(
            "target_domain",
            "model_version",
            "rule",
            "job_id",
            name=op.f("uq_dictionaries_target_domain_model_version_rule_job_id"),
        ),
    )
    op.create_index(op.f("ix_dictionaries_job_id"), "dictionaries", ["job_id"])
    op.create_table(
        "mapping_pairs",
        sa.Column("dictionary_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("source_domain", _Text, nullable=False),
        sa.Column("source_item", _Text, nullable=False),
        sa.Column("target_item", _Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("score_micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "dictionary_id", "source_domain", "source_item", "target_item", name=op.f("pk_mapping_pairs")
        ),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_mapping_pairs_by_target"),
        "mapping_pairs",
        ["dictionary_id", "target_item", "source_domain", "source_item"],
    )
    op.create_table(
        "mapping_sources",
        sa.Column("dictionary_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("source_domain", _Text, nullable=False),
        sa.Column("source_item", _Text, nullable=False),
        sa.Column("decisions", sa.BigInteger, nullable=False),
        sa.Column("deletions", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("dictionary_id", "source_domain", "source_item", name=op.f("pk_mapping_sources")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("mapping_sources", "mapping_pairs", "dictionaries", "bad_rows", "chunks", "jobs"):
        op.drop_table(table)
