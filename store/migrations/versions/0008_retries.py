"""What a retry takes over: the epoch of a checkpoint, and the way from a job to its retries"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoint_epoch", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_jobs_retry_of"),
        "jobs",
        ["retry_of"],
        sqlite_where=sa.text("retry_of IS NOT NULL"),
        postgresql_where=sa.text("retry_of IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_retry_of"), "jobs")
    op.drop_column("jobs", "checkpoint_epoch")
