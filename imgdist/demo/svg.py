"""The same picture as the terminal's (imgdist/demo/timeline.py), as a stand-alone SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from imgdist.demo.start import Start
from imgdist.demo.timeline import FILL, PULL, RUN, end_of, load, phases

_COLOURS = {PULL: "#4c78a8", RUN: "#f2b134", FILL: "#c8ccd0"}
_LEFT, _WIDTH, _RIGHT = 170, 640, 110
_ROW, _BAR, _LINK, _TOP, _NOTE = 84, 22, 30, 64, 20
_PARTS = 320


def drawing(starts: Sequence[Start], bits_per_s: int, title: str, notes: Sequence[str] = ()) -> str:
    """An SVG document: one row a start, its phases as a bar and the link's load as an area below it; then `notes`."""
    end_s = end_of(starts)
    bottom = _TOP + _ROW * len(starts) + 60
    height = bottom + _NOTE * len(notes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _RIGHT}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(20, 28, title, 'font-size="16" font-weight="bold"'),
        _legend(),
    ]
    for number, start in enumerate(starts):
        parts += _row(start, _TOP + _ROW * number, end_s, bits_per_s)
    parts += _axis(end_s, _TOP + _ROW * len(starts))
    parts += [_text(20, bottom + _NOTE * number, note) for number, note in enumerate(notes)]
    return "\n".join([*parts, "</svg>", ""])


def _row(start: Start, top: float, end_s: float, bits_per_s: int) -> list[str]:
    scale = _WIDTH / end_s
    middle = top + 16
    parts = [_text(_LEFT - 12, middle, start.what, 'text-anchor="end" font-weight="bold"')]
    for name, from_s, to_s in phases(start):
        parts.append(
            f'<rect x="{_LEFT + from_s * scale:.1f}" y="{top}" width="{(to_s - from_s) * scale:.1f}" height="{_BAR}" '
            f'fill="{_COLOURS[name]}"/>'
        )
    x = _LEFT + start.first_output_s * scale
    parts.append(f'<circle cx="{x:.1f}" cy="{top + _BAR / 2}" r="6" fill="#2a9d4b" stroke="white" stroke-width="2"/>')
    megabytes = f"{start.bytes_before_output / 1e6:.1f} MB before output, {start.bytes_total / 1e6:.1f} MB in all"
    parts.append(_text(_LEFT + _WIDTH + 12, middle, f"{start.first_output_s:.2f} s", 'font-weight="bold"'))
    base = top + _BAR + 4 + _LINK
    shares = load(start, _PARTS, end_s, bits_per_s)
    points = [f"{_LEFT + _WIDTH * (i + 0.5) / _PARTS:.1f},{base - _LINK * share:.1f}" for i, share in enumerate(shares)]
    parts.append(f'<polygon points="{_LEFT},{base} {" ".join(points)} {_LEFT + _WIDTH},{base}" fill="#72b7b2"/>')
    parts.append(_text(_LEFT - 12, base - 10, "link", 'text-anchor="end" fill="#777"'))
    parts.append(_text(_LEFT, base + 16, megabytes, 'font-size="11" fill="#777"'))
    return parts


def _axis(end_s: float, top: float) -> list[str]:
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if end_s / step <= 12)
    parts = [f'<line x1="{_LEFT}" y1="{top}" x2="{_LEFT + _WIDTH}" y2="{top}" stroke="#999"/>']
    for number in range(int(end_s / step) + 1):
        x = _LEFT + _WIDTH * number * step / end_s
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + 5}" stroke="#999"/>')
        parts.append(_text(x, top + 20, f"{number * step:g} s", 'text-anchor="middle" font-size="11" fill="#777"'))
    return parts


def _legend() -> str:
    parts = []
    x = 20.0
    for name, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="40" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 50, name, 'font-size="11" fill="#777"'))
        x += 40 + 6.2 * len(name)
    parts.append(f'<circle cx="{x + 6}" cy="46" r="6" fill="#2a9d4b"/>')
    parts.append(_text(x + 18, 50, "first output", 'font-size="11" fill="#777"'))
    return "\n".join(parts)


def _text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'
