"""The subcommands, one file each; the file's name is the subcommand's name."""
