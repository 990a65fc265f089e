"""The request journal's meaning: records, states, checks."""
