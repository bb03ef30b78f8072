"""Processes of this machine: their deaths and logs, waiting for them, stopping them, their sockets."""
