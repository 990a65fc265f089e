"""Processes, listeners, restarts."""
