"""The commands, one file each: arguments in, results on stdout, log and progress on stderr."""
