"""Indexes by which tenants take turns"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SOME = ("started_at", "worker")  # of the jobs that have one


def upgrade() -> None:
    op.create_index(
        op.f("ix_jobs_status_queue_tenant_id_parent_id"),
        "jobs",
        ["status", "queue", "tenant", "id", "parent_id"],
    )
    for column in SOME:
        op.create_index(
            op.f(f"ix_jobs_queue_tenant_{column}"),
            "jobs",
            ["queue", "tenant", column],
            sqlite_where=sa.text(f"{column} IS NOT NULL"),
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.drop_index(op.f("ix_jobs_status_queue_id"), "jobs")
    # newest first, as they are listed: an index in the order of turns would be taken for theirs
    op.create_index("ix_jobs_tenant_newest", "jobs", ["tenant", sa.text("id DESC")])
    op.drop_index(op.f("ix_jobs_tenant_id"), "jobs")


def downgrade() -> None:
    op.create_index(op.f("ix_jobs_tenant_id"), "jobs", ["tenant", "id"])
    op.drop_index("ix_jobs_tenant_newest", "jobs")
    op.create_index(op.f("ix_jobs_status_queue_id"), "jobs", ["status", "queue", "id"])
    for column in SOME:
        op.drop_index(op.f(f"ix_jobs_queue_tenant_{column}"), "jobs")
    op.drop_index(op.f("ix_jobs_status_queue_tenant_id_parent_id"), "jobs")
