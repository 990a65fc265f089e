"""A backend written for API level 0."""

stellane_api_level = 0
