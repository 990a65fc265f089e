"""What is needed with no plugin installed."""
