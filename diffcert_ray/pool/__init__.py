"""Who evaluates items: this process, or Ray's actors."""
