"""Scores that need not be computed again"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scores",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("blob_sha256", sa.String(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_scores")),
    )


def downgrade() -> None:
    op.drop_table("scores")
