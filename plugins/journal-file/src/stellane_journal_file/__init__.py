"""A segmented file journal engine."""
