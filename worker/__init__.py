"""The worker: takes jobs, hands each to a child process, opens uploads in a sandbox."""
