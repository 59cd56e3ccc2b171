"""The subcommands of `adap`: one file for each noun."""
