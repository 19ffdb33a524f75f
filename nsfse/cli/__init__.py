"""The command line: commands, what they take, print and refuse."""
