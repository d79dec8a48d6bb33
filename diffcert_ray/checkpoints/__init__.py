"""From files to networks, running no code of theirs."""
