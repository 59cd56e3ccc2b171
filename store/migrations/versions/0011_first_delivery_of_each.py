"""The delivery that is due first is found for each webhook by itself"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLE = "webhook_deliveries"


def upgrade() -> None:
    op.create_index(
        op.f("ix_webhook_deliveries_webhook_id_status_next_at"),
        TABLE,
        ["webhook_id", "status", "next_at"],
    )
    op.drop_index(op.f("ix_webhook_deliveries_status_next_at"), TABLE)


def downgrade() -> None:
    op.create_index(op.f("ix_webhook_deliveries_status_next_at"), TABLE, ["status", "next_at"])
    op.drop_index(op.f("ix_webhook_deliveries_webhook_id_status_next_at"), TABLE)
