"""Bytes as people read them."""


def size(num_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves at least one before the point."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        text = f"{value:.0f}" if unit == "bytes" else f"{value:.1f}"
        # What is rounded up to a thousand belongs to the next unit.
        if float(text) < 1000:
            return f"{text} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
