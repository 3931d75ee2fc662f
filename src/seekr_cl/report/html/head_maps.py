"""Layer by head maps."""

from collections.abc import Sequence

from markupsafe import Markup

from seekr_cl.report.html import charts
from seekr_cl.report.html.colors import png, shade
from seekr_cl.report.html.data import Heads

_LEFT, _TOP, _BOTTOM = 44, 8, 56
_WIDEST, _HIGHEST = 300, 330


def head_map(heads: Heads, measure: str, about: str) -> Markup:
    """One measure of one task, the chosen heads outlined.

    Args:
        heads: what the task said.
        measure: a key of ``heads.maps``.
        about: what the measure is.
    """
    values = heads.maps[measure]
    layers, count = len(values), max(len(row) for row in values)
    cell = max(3.0, min(22.0, _WIDEST / count, _HIGHEST / layers))
    width, height = cell * count, cell * layers
    low = min(0.0, *(value for row in values for value in row))
    high = max(value for row in values for value in row)
    span = (high - low) or 1.0
    picture = png([[shade((value - low) / span) for value in row] for row in values])
    parts = [
        Markup(
            '<image href="{}" x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" class="pixels"/>'
        ).format(picture, _LEFT, _TOP, round(width, 1), round(height, 1))
    ]
    outline = _outline(heads, cell)
    parts += [Markup('<path d="{}" class="{}"/>').format(outline, kind) for kind in ("halo", "chosen") if outline]
    parts += [
        charts.text(_LEFT - 6, _TOP + cell * (row + 0.5) + 4, str(heads.layers[row]), "tick", "end")
        for row in _some(layers, cell)
    ]
    parts += [
        charts.text(_LEFT + cell * (head + 0.5), _TOP + height + 14, str(head), "tick", "middle")
        for head in _some(count, cell)
    ]
    parts.append(charts.text(_LEFT + width / 2, _TOP + height + 30, "head", "label", "middle"))
    parts.append(charts.text(2, _TOP + height + 14, "layer", "label"))
    parts += _scale(low, high, width, height)
    top = max(((value, row, head) for row, line in enumerate(values) for head, value in enumerate(line)))
    described = (
        f"{about}. Largest: {charts.short(top[0])} at layer {heads.layers[top[1]]}, head {top[2]}. "
        f"{sum(map(len, heads.chosen.values()))} chosen heads are outlined."
    )
    title = f"{measure} after {heads.task}"
    return charts.svg(round(_LEFT + width + 12), round(_TOP + height + _BOTTOM), title, described, parts, "map")


def _scale(low: float, high: float, width: float, height: float) -> list[Markup]:
    """What the colors mean."""
    wide, top = min(width, 120.0), _TOP + height + 40
    bar = png([[shade(number / 31) for number in range(32)]])
    drawn = Markup('<image href="{}" x="{}" y="{}" width="{}" height="7" preserveAspectRatio="none"/>')
    return [
        drawn.format(bar, _LEFT, round(top, 1), round(wide, 1)),
        charts.text(_LEFT - 6, top + 8, charts.short(low), "tick", "end"),
        charts.text(_LEFT + wide + 6, top + 8, charts.short(high), "tick"),
    ]


def _some(count: int, cell: float) -> Sequence[int]:
    """Which of so many places get a number."""
    every = 1
    while cell * every < 18:
        every *= 2
    return range(0, count, every)


def _outline(heads: Heads, cell: float) -> str:
    rows = {layer: row for row, layer in enumerate(heads.layers)}
    inset = min(1.0, cell / 8)
    size = round(cell - 2 * inset, 2)
    return "".join(
        f"M{round(_LEFT + head * cell + inset, 2)} {round(_TOP + rows[layer] * cell + inset, 2)}h{size}v{size}h-{size}z"
        for layer, chosen in heads.chosen.items()
        if layer in rows
        for head in chosen
    )


def chosen_lines(heads: Heads) -> list[tuple[int, str]]:
    """The selection in words: layer, and its heads."""
    return [(layer, ", ".join(map(str, chosen))) for layer, chosen in sorted(heads.chosen.items())]
