"""The page's style sheet: light and dark, for phone, desktop and paper.

Colours are Okabe and Ito's, which people with any colour vision can distinguish, darkened for a light background and
lightened for a dark one, so that each has a contrast of at least 3:1 to its background, and text 4.5:1.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f6f7f9; --text: #1a1d21; --quiet: #535a63; --edge: #d3d7dd;
  --c1: #0069a8; --c2: #b8480a; --c3: #00775a; --c4: #9a3f86; --c5: #7a6100; --c6: #4d5560; --bound: #b00020; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ground: #14171b; --panel: #1d2126; --text: #e9ecf0; --quiet: #aab2bd;
  --edge: #3a414a; --c1: #63b8f0; --c2: #f2955c; --c3: #3ecfa3; --c4: #e39ad1; --c5: #e6cf4f; --c6: #b6bec9;
  --bound: #ff8a95; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 82rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2rem 0 .5rem; border-top: 1px solid var(--edge); padding-top: 1rem; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0; }
p { margin: .25rem 0; }
.verdict { font-weight: 600; font-size: 1.1rem; }
.about, figcaption p, summary, footer { color: var(--quiet); }
figcaption p, summary, .keys, footer { font-size: .875rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; padding: .75rem; background: var(--panel); border: 1px solid var(--edge); border-radius: .5rem;
  min-width: 0; break-inside: avoid; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .5rem; margin: 1rem 0; }
.tiles div { padding: .5rem .75rem; background: var(--panel); border: 1px solid var(--edge); border-radius: .5rem; }
dt { color: var(--quiet); font-size: .8rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.notes { padding: .6rem 1rem .6rem 2rem; border-left: .3rem solid var(--bound); background: var(--panel); }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; margin: .4rem 0 0; padding: 0; }
.key { vertical-align: middle; overflow: visible; }
.table { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
td { white-space: nowrap; } td.long { white-space: normal; text-align: left; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } .tables .table { max-width: 100%; }
a { color: var(--c1); }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--edge); font-weight: 400; }
th { color: var(--quiet); } th:first-child { text-align: left; min-width: 6rem; }
.chart { display: block; width: 100%; height: auto; margin: .4rem 0; }
.chart text { font-size: 12px; fill: var(--quiet); }
.chart text.figure, .chart text.mark { fill: var(--text); }
.chart text.bound { fill: var(--bound); }
.chart path { fill: none; stroke: var(--quiet); stroke-width: 1; }
.chart .grid { stroke: var(--edge); }
.chart .bound { stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 7 4; }
.chart .mark { stroke: var(--quiet); stroke-dasharray: 2 3; }
.chart text.bound, .chart text.mark, .chart text.figure { stroke: var(--panel); stroke-width: 3; stroke-dasharray: none;
  paint-order: stroke; }
.chart .span { fill: var(--quiet); opacity: .15; }
.chart .line, .key .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .band { stroke: none; opacity: .18; }
.line.dashed { stroke-dasharray: 6 4; }
.whisker path { stroke: inherit; stroke-width: 2; }
.s1 { stroke: var(--c1); fill: var(--c1); } .s2 { stroke: var(--c2); fill: var(--c2); }
.s3 { stroke: var(--c3); fill: var(--c3); } .s4 { stroke: var(--c4); fill: var(--c4); }
.s5 { stroke: var(--c5); fill: var(--c5); } .s6 { stroke: var(--c6); fill: var(--c6); }
.chart path.s1 { stroke: var(--c1); } .chart path.s2 { stroke: var(--c2); } .chart path.s3 { stroke: var(--c3); }
.chart path.s4 { stroke: var(--c4); } .chart path.s5 { stroke: var(--c5); } .chart path.s6 { stroke: var(--c6); }
.chart path.band.s1 { fill: var(--c1); stroke: none; }
.chart .dots path, .key .dots path { fill: inherit; stroke: inherit; stroke-width: 1.2; }
.chart .whisker path { stroke: inherit; stroke-width: 2; }
.bar { stroke: none; }
@media (max-width: 40rem) { body { padding: .6rem; } figure { padding: .5rem; } .chart text { font-size: 15px; } }
@media print { html { font-size: 10px; color-scheme: light; } body { max-width: none; padding: 0; font-size: 1rem; }
  .figures { grid-template-columns: 1fr 1fr; } .table { font-size: .9rem; } details:not([open]), nav { display: none; }
  details, .tiles div, figure, tr { break-inside: avoid; } .table { overflow: visible; } }
"""
