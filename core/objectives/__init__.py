"""The ten training objectives, each an `Objective`; `registry` lists them by name."""
