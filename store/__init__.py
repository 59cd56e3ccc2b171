"""Lasting state: settings, tables, the job state machine, blobs and migrations. No torch here."""
