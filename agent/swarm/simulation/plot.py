"""When the nodes of a run had everything, as a stand-alone SVG file."""

from __future__ import annotations

from xml.sax.saxutils import escape

from agent.swarm.simulation.outcome import Outcome

_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 64, 640, 320
_POINTS = 400
_GRID = "#dde1e5"


def drawing(outcome: Outcome) -> str:
    """An SVG document: the share of nodes that are complete over time, with T* and percentiles."""
    least = outcome.scenario.least_time_s()
    end = max(outcome.seconds, least) * 1.08
    scenario = outcome.scenario
    title = f"{scenario.nodes:,} nodes, {scenario.chunks:,} chunks: complete after {outcome.ratio:.3f} T*"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 40}" height="{_TOP + _HEIGHT + 60}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(20, 28, title, 'font-size="16" font-weight="bold"'),
        _text(20, 48, "share of nodes that have every chunk, over time", 'font-size="11" fill="#777"'),
        *_axes(end),
        f'<polyline points="{_curve(outcome, end)}" fill="none" stroke="#4c78a8" stroke-width="2.5"/>',
        _line(least / end, "#d62728", f"T* {least:.2f} s", 14),
        _line(outcome.percentile(0.5) / end, "#72b7b2", f"p50 {outcome.percentile(0.5):.2f} s", 32),
        _line(outcome.percentile(0.999) / end, "#f2b134", f"p99.9 {outcome.percentile(0.999):.2f} s", 50),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _curve(outcome: Outcome, end: float) -> str:
    done = outcome.tally.done_at
    step = max(1, len(done) // _POINTS)
    kept = sorted({*range(0, len(done), step), len(done) - 1})
    points = [(0.0, 0.0), (done[0], 0.0)]
    points += [(done[i], (i + 1) / len(done)) for i in kept]
    points.append((end, 1.0))
    return " ".join(f"{_x(at / end):.1f},{_y(share):.1f}" for at, share in points)


def _axes(end: float) -> list[str]:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _WIDTH}" y2="{y:.1f}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{share:.0%}", 'text-anchor="end" font-size="11" fill="#777"'))
    step = next(unit * 10.0**power for power in range(-3, 9) for unit in (1, 2, 5) if end / (unit * 10.0**power) <= 10)
    for number in range(int(end / step) + 1):
        x = _x(number * step / end)
        parts.append(f'<line x1="{x:.1f}" y1="{_y(0):.1f}" x2="{x:.1f}" y2="{_y(0) + 5:.1f}" stroke="#999"/>')
        label = f"{number * step:g} s"
        parts.append(_text(x, _y(0) + 20, label, 'text-anchor="middle" font-size="11" fill="#777"'))
    return parts


def _line(at: float, colour: str, label: str, down: float) -> str:
    x = _x(at)
    return (
        f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _HEIGHT}" stroke="{colour}" stroke-dasharray="4 3"/>'
        + _text(x - 6, _TOP + down, label, f'text-anchor="end" font-size="11" fill="{colour}"')
    )


def _x(share: float) -> float:
    return _LEFT + _WIDTH * share


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'
