"""The work of every kind of job, a file a subject."""
