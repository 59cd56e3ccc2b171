"""The worker: takes jobs, hands each to a child process, and opens what strangers send in a sandbox."""
