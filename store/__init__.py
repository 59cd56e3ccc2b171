"""What must last: settings, tables, the job state machine, blobs and migrations. No torch here."""
