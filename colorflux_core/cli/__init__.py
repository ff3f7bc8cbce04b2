"""Shared by the commands: flags, error reporting, and runs over folders of photos."""
