"""Settings: what they are, their presets, and how they are given on a command line."""
