"""One self-contained HTML page about runs: ``gather`` reads folders, ``charts`` draws, ``page`` puts it together."""
