"""The page around a report: its style, its few lines of script, and the HTML helpers. No content."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

LIGHT = """
:root {
  color-scheme: light dark;
  --page: #faf9f7; --card: #ffffff; --line: #e7e4de; --grid: #efece7; --ink: #1f1e1c; --soft: #75716a;
  --good: #1c7c4d; --bad: #b93a32; --warn: #9a6700; --info: #2f5fc4; --tint: #f4f2ee;
  --c0: #2f5fc4; --c1: #d97b29; --c2: #2a9d78; --c3: #a24fb0; --c4: #c8453c; --c5: #6b8e23; --c6: #3fa7c4;
  --c7: #b58a1c; --c8: #a8a49c;
}
"""
"""The colours by day, which drawings in files of their own have too."""

STYLE = (
    LIGHT
    + """\
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141416; --card: #1c1c1f; --line: #2e2e33; --grid: #29292e; --ink: #e9e8e6; --soft: #9a9792;
    --good: #5fc793; --bad: #f08078; --warn: #e0b04a; --info: #8fb0ff; --tint: #232327;
    --c0: #7fa3fa; --c1: #eb9d58; --c2: #57c5a0; --c3: #cb8ad6; --c4: #ee837b; --c5: #a5c268; --c6: #74c8e0;
    --c7: #d9b556; --c8: #6d6b68;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 48px 0 14px; letter-spacing: -0.01em; }
h3 { font-size: 14px; font-weight: 600; margin: 0; }
p { margin: 0; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 3px; }
nav { margin-top: 18px; display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 14px; }
.over { color: var(--soft); font-size: 13px; letter-spacing: 0.04em; margin-bottom: 6px; }
.title { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 14px; }
.soft { color: var(--soft); }
.lead { color: var(--soft); margin-top: 6px; max-width: 110ch; }
.state { font-size: 13px; font-weight: 600; padding: 2px 11px; border-radius: 99px; border: 1px solid currentColor; }
.finished, .right { color: var(--good); } .running { color: var(--info); }
.stopped, .restarted, .tracker_failed { color: var(--warn); } tr:has(.restarted) td { background: var(--tint); }
.failed, .wrong { color: var(--bad); }
.banner { margin-top: 20px; padding: 12px 16px; border-radius: 10px; border: 1px solid var(--bad); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; margin-top: 26px; }
.tile, .chart, .card, .tablebox { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 16px; }
.tile p { color: var(--soft); font-size: 13px; }
.tile strong { display: block; font-size: 21px; font-weight: 600; letter-spacing: -0.015em; line-height: 1.4; white-space: nowrap; }
.tile strong .from { color: var(--soft); font-weight: 400; font-size: 0.76em; letter-spacing: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 14px; }
.chart { margin: 0; padding: 14px 14px 6px; display: flex; flex-direction: column; justify-content: space-between; }
.chart svg { display: block; width: 100%; height: auto; touch-action: pan-y; cursor: crosshair; }
.chart svg text { font-size: 10.5px; fill: var(--soft); stroke: none; }
.chart figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 7px; }
.chart h3 { flex: 1; } .chart em { font-style: normal; font-size: 13px; color: var(--soft); }
.chart .hint { width: 100%; color: var(--soft); font-size: 12.5px; line-height: 1.4; margin-bottom: 6px; }
.chart .keys { display: flex; flex-wrap: wrap; gap: 0 12px; font-size: 13px; line-height: 1.65; }
.chart.crowd .keys { width: 100%; margin: 2px 0; } .chart.crowd .raw { opacity: 0.15; }
.key { white-space: nowrap; } .key b { font-weight: 600; }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 5px; }
.strips { padding-bottom: 10px; margin-bottom: 12px; } .strips figcaption { margin-bottom: 8px; } .strips h3 { flex: none; }
.strip { display: grid; grid-template-columns: 92px minmax(0, 1fr) 44px; gap: 10px; align-items: center; font-size: 13px; }
.strip + .strip { border-top: 1px solid var(--grid); } .strip b { font-weight: 500; text-align: right; color: var(--soft); }
.strip span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.chart .strip svg { height: 24px; cursor: default; } .strip .under { opacity: 0.28; } .strip .within { fill: none; stroke: var(--card); stroke-width: 1.5px; vector-effect: non-scaling-stroke; pointer-events: all; }
.strip.axis { color: var(--soft); } .strip.axis p { display: flex; justify-content: space-between; }
.grid line { stroke: var(--grid); }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.curve circle { fill: currentColor; stroke: none; } .curve .raw { opacity: 0.3; stroke-width: 1.1; }
line.bound { stroke: var(--bad); stroke-dasharray: 4 4; } .chart svg text.bound { fill: var(--bad); }
.curve.dashed path { stroke-dasharray: 3 4; } line.diagonal { stroke: var(--soft); stroke-dasharray: 2 4; }
.counts rect { fill: var(--c8); opacity: 0.4; }
.cursor { stroke: var(--soft); opacity: 0.5; visibility: hidden; }
.dot { visibility: hidden; stroke: var(--card); stroke-width: 1.5; }
.tablebox { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 16px; border-top: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: 13px; border-top: 0; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.wide { min-width: 16em; overflow-wrap: anywhere; }
.bar { display: block; height: 10px; border-radius: 3px; margin-top: 6px; min-width: 2px; }
td:has(.bar) { width: 45%; padding-left: 0; padding-right: 0; }
.split { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 14px; align-items: start; }
.card { padding: 16px 18px; margin-bottom: 12px; }
.card .id { color: var(--soft); font-size: 12.5px; display: flex; flex-wrap: wrap; gap: 2px 16px; margin-bottom: 6px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { margin-bottom: 12px; max-height: 15em; overflow-y: auto; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
.answer { background: var(--tint); border-radius: 9px; padding: 10px 13px; }
.answer header { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; color: var(--soft); margin-bottom: 4px; }
.answer header b { font-weight: 600; }
.answer .text { font-size: 14px; max-height: 22em; overflow-y: auto; }
.branches { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 10px; margin-top: 12px; }
details summary { cursor: pointer; }
details.card summary { overflow-wrap: anywhere; }
.chips { display: inline-flex; gap: 3px; vertical-align: middle; margin-left: 8px; }
.chips i { width: 9px; height: 16px; border-radius: 3px; background: var(--c8); }
pre { margin: 12px 0 0; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; }
@media (max-width: 720px) {
  main { padding: 24px 14px 56px; } h1 { font-size: 24px; } h2 { margin-top: 38px; }
  .pair, .split { grid-template-columns: minmax(0, 1fr); } th, td { padding: 7px 11px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; } .tile { padding: 12px; }
  .charts { display: flex; overflow-x: auto; scroll-snap-type: x mandatory; margin: 0 -14px; padding: 0 14px 6px; scroll-padding: 14px; }
  .charts .chart { flex: 0 0 calc(100% - 26px); scroll-snap-align: start; } .charts .chart:only-child { flex-basis: 100%; }
  .chart svg { touch-action: auto; }
  .tile strong { font-size: 19px; } .strip { grid-template-columns: 70px minmax(0, 1fr) 38px; gap: 6px; font-size: 12px; }
}
@media print { .chart, .card, .tile { break-inside: avoid; } }
"""
)

SCRIPT = """
const short = v => {
  if (v === null || v === undefined) return '–';
  const a = Math.abs(v);
  if (a === 0 || (Number.isInteger(v) && a < 1e4)) return String(v);
  if (a >= 1e6) return (v / 1e6).toFixed(1) + 'M';
  if (a >= 1e4) return (v / 1e3).toFixed(1) + 'k';
  if (a < 1e-3) return v.toExponential(1);
  return v.toFixed(a < 1 ? 3 : a < 100 ? 2 : 0);
};
let charts = [];
const nearest = (points, step) => points.reduce(
  (best, p) => best && Math.abs(best[0] - step) <= Math.abs(p[0] - step) ? best : p, null);
function show(step) {
  for (const c of charts) {
    const found = c.data.series.map(points => nearest(points, step));
    const near = nearest(found.filter(Boolean), step);
    if (!near) continue;
    c.when.textContent = 'step ' + near[0];
    c.cursor.setAttribute('x1', near[2]); c.cursor.setAttribute('x2', near[2]); c.cursor.style.visibility = 'visible';
    found.forEach((p, i) => {
      c.values[i].textContent = p ? short(p[1]) + c.data.unit : '–';
      const seen = p && p[3] !== null;
      c.dots[i].style.visibility = seen ? 'visible' : 'hidden';
      if (seen) { c.dots[i].setAttribute('cx', p[2]); c.dots[i].setAttribute('cy', p[3]); }
    });
  }
}
function hide() {
  for (const c of charts) {
    c.when.textContent = c.restWhen; c.cursor.style.visibility = 'hidden';
    c.values.forEach((b, i) => { b.textContent = c.rest[i]; c.dots[i].style.visibility = 'hidden'; });
  }
}
function wire() {
  charts = [...document.querySelectorAll('[data-chart]')].map(el => ({
    data: JSON.parse(el.dataset.chart), svg: el.querySelector('svg'), cursor: el.querySelector('.cursor'),
    dots: [...el.querySelectorAll('.dot')], values: [...el.querySelectorAll('.keys b')], when: el.querySelector('em'),
  }));
  for (const c of charts) {
    c.rest = c.values.map(b => b.textContent); c.restWhen = c.when.textContent;
    const move = event => {
      const box = c.svg.getBoundingClientRect(), [low, high, begin, end] = c.data.x;
      const x = (event.clientX - box.left) / box.width * c.data.width;
      show(Math.min(high, Math.max(low, low + (x - begin) / (end - begin) * (high - low))));
    };
    c.svg.addEventListener('pointermove', move);
    c.svg.addEventListener('pointerdown', move);
    c.svg.addEventListener('pointerleave', hide);
  }
}
wire();
"""


def escape(value: object) -> str:
    return html.escape(str(value))


def page(title: str, body: str, *, script: str = "", top: str = "") -> str:
    """A whole document with its own style and script, which refers to nothing outside; `top` goes before the body and
    `script` after the page's own."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body>{top}<main>{body}</main><script>{SCRIPT}{script}</script></body></html>\n"
    )


def section(title: str, body: str, *, lead: str = "") -> str:
    """A titled part of the page, nothing when it has no content."""
    if not body:
        return ""
    name = title.lower().replace(" ", "-")
    introduction = f'<p class="lead" style="margin:-8px 0 14px">{escape(lead)}</p>' if lead else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{introduction}{body}</section>'


def navigation(titles: Iterable[str]) -> str:
    links = "".join(f'<a href="#{title.lower().replace(" ", "-")}">{escape(title)}</a>' for title in titles)
    return f"<nav>{links}</nav>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table whose cells are ready-made HTML; the columns in `numbers` are set to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in numbers else ''}>{value}</{tag}>" for index, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<tr>{cells('th', [escape(column) for column in columns])}</tr>"
    return f'<div class="tablebox"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
