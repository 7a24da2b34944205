"""The look of `report.html`: one style sheet for light and dark, desk and phone, and the frame around the sections."""

from __future__ import annotations

from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #1b1d20; --soft: #62676e; --line: #e2e3e0; --track: #ecedea;
  --base: #c2570c; --improved: #0b6bcb; --deployed: #0f766e; --control: #7b8087; --good: #15803d; --bad: #b91c1c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121416; --card: #1b1e21; --ink: #e9eaec; --soft: #9aa1a9; --line: #2d3136; --track: #2a2e33;
    --base: #f59e5b; --improved: #63b0ff; --deployed: #4fd1bf; --control: #8d949c; --good: #5fd38a; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 15px;
  font-family: Inter, "Segoe UI", system-ui, -apple-system, Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1020px; margin: 0 auto; padding: 36px 20px 64px; }
header { margin-bottom: 26px; }
header .kicker { color: var(--soft); margin: 0 0 4px; font-size: 13px; letter-spacing: .04em; text-transform: uppercase; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 10px; font-weight: 650; }
h2 { font-size: 17px; letter-spacing: -.01em; margin: 0 0 4px; font-weight: 620; }
h3 { font-size: 13px; margin: 0 0 8px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 12px; }
.lead { font-size: 17px; max-width: 68ch; margin: 0; }
section > :last-child { margin-bottom: 0; }
.note { color: var(--soft); max-width: 76ch; font-size: 14px; margin-top: 12px; }
.none { color: var(--soft); font-style: italic; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin: 0 0 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 0 0 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; letter-spacing: -.02em; font-weight: 640; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 13px; }
.tile.base b { color: var(--base); } .tile.improved b { color: var(--improved); } .tile.deployed b { color: var(--deployed); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 26px; }
.columns > * { min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 550; font-size: 12.5px; }
td, th { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
table.narrow { max-width: 420px; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.wide { width: 40%; min-width: 130px; }
td small { color: var(--soft); display: block; font-size: 12.5px; line-height: 1.35; }
.verdict { font-weight: 620; } .verdict.better { color: var(--good); } .verdict.worse { color: var(--bad); }
.interval { --tick: linear-gradient(var(--line), var(--line)); position: relative; height: 18px;
  background: var(--tick) 25% 0/1px 100% no-repeat, var(--tick) 50% 0/1px 100% no-repeat, var(--tick) 75% 0/1px 100% no-repeat,
  linear-gradient(var(--track), var(--track)) 0 50%/100% 4px no-repeat; }
.interval .range { position: absolute; top: 5px; height: 8px; border-radius: 4px; opacity: .42; background: currentColor; }
.interval .dot { position: absolute; top: 3px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%;
  background: currentColor; border: 2px solid var(--card); }
.share { height: 10px; background: var(--track); border-radius: 5px; overflow: hidden; }
.share span { display: block; height: 100%; background: currentColor; border-radius: 5px; opacity: .8; }
.base { color: var(--base); } .improved { color: var(--improved); }
.deployed { color: var(--deployed); } .control { color: var(--control); }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin: 6px 0 10px; }
.strip i { width: 12px; height: 26px; border-radius: 3px; overflow: hidden; background:
  linear-gradient(var(--up) 50%, var(--down) 50%); }
.strip .both { --up: var(--base); --down: var(--improved); opacity: .38; }
.strip .neither { --up: var(--track); --down: var(--track); }
.strip .win { --up: var(--track); --down: var(--improved); }
.strip .loss { --up: var(--base); --down: var(--track); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--soft); font-size: 13px; margin: 6px 0 0; }
.legend .strip { margin: 0; display: inline-flex; vertical-align: -8px; margin-right: 6px; }
.key { display: inline-block; width: 18px; height: 0; border-top: 3px solid currentColor; vertical-align: 4px; margin-right: 6px; }
.key.dashed { border-top: 2px dashed currentColor; }
svg.chart { width: 100%; max-width: 580px; height: auto; display: block; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .band { fill: currentColor; opacity: .16; } svg circle { fill: currentColor; }
svg .level { stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .column { fill: var(--deployed); opacity: .75; } svg .mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 3; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 220px), 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); margin-top: 6px; }
figcaption b { color: var(--ink); font-weight: 580; }
video { width: 100%; border-radius: 8px; background: var(--track); display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12.5px; overflow-wrap: anywhere; }
details { margin-top: 10px; font-size: 14px; } summary { cursor: pointer; color: var(--soft); }
footer { color: var(--soft); font-size: 13px; padding: 4px 2px; }
@media (max-width: 560px) {
  main { padding: 22px 12px 40px; } section { padding: 18px 16px; } h1 { font-size: 24px; } .lead { font-size: 16px; }
  td.hide, th.hide { display: none; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  .stack thead { display: none; }
  .stack tr { display: grid; grid-template-columns: minmax(78px, max-content) minmax(44px, max-content) 1fr;
    align-items: center; column-gap: 14px; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .stack tr:last-child { border-bottom: 0; } .stack td { border: 0; padding: 2px 0; } .stack td:first-child { grid-column: 1 / -1; }
  .stack td.wide { width: auto; } .stack td small { display: inline; margin-left: 6px; }
  td, th { padding-right: 10px; } .tiles { grid-template-columns: repeat(2, 1fr); } .tile b { font-size: 21px; }
}
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document that needs nothing from outside but the videos beside it."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """One card."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(p for p in parts if p) + "\n</section>"


def table(head: list[tuple[str, str]], rows: list[list[str]], style: str = "") -> str:
    """A table that scrolls sideways when it must.

    Args:
        head: (name, CSS class) of each column.
        rows: cells as HTML, in the order of the columns.
        style: CSS class of the table; "stack" puts the first column above the others on a phone, "narrow" limits the width.
    """
    top = "".join(f'<th class="{style}">{escape(name)}</th>' for name, style in head)
    body = "".join("<tr>" + "".join(f'<td class="{s}">{c}</td>' for c, (_, s) in zip(row, head, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
