"""Alembic's entry: run the migrations on the connection that `adap.store.migrate` hands over."""

from alembic import context

from adap.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
