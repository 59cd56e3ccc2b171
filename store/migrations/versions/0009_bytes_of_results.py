"""How many bytes the files take that a job has made; those made before are not counted"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("result_bytes", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_jobs_tenant_result_bytes"),
        "jobs",
        ["tenant", "result_bytes"],
        sqlite_where=sa.text("result_bytes IS NOT NULL"),
        postgresql_where=sa.text("result_bytes IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_tenant_result_bytes"), "jobs")
    op.drop_column("jobs", "result_bytes")
