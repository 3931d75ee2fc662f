"""Files, locks, signals and YAML: what every part needs of the operating system."""
