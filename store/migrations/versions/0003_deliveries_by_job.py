"""Deliveries by job, which are looked for when a job is deleted"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEX = "ix_webhook_deliveries_job_id"


def upgrade() -> None:
    op.create_index(op.f(INDEX), "webhook_deliveries", ["job_id"])


def downgrade() -> None:
    op.drop_index(op.f(INDEX), "webhook_deliveries")
