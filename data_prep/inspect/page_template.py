"""The frame of the page of samples: one self-contained HTML file without scripts."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #fafaf8; --card: #fff; --ink: #1d1d1f; --faint: #63636a; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161618; --card: #222226; --ink: #ececee; --faint: #a0a0a8; --line: #3a3a40; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; }
header, main { max-width: 1500px; margin: 0 auto; padding: 12px 20px; }
h1 { font-size: 20px; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 22px 0 8px; }
h2 small, .faint { color: var(--faint); font-weight: normal; font-size: 12px; }
nav a { margin-right: 10px; color: inherit; white-space: nowrap; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.35; }
.layer { margin: 10px 0 0 20px; }
label { margin-right: 16px; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax($column, 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.picture { position: relative; display: flex; justify-content: center; background: #8884; }
.picture > div { position: relative; }
.picture img { display: block; max-width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.none { padding: 40px 10px; color: var(--faint); }
figcaption { padding: 8px 10px; overflow-wrap: anywhere; }
figcaption b { font-size: 13px; }
.text { border-left: 3px solid var(--line); padding-left: 8px; margin: 6px 0 0; white-space: pre-wrap; }
.bad { color: #d0342c; }
.wire path { fill: none; stroke: #ff2fd0; stroke-width: 1; vector-effect: non-scaling-stroke; }
.wire .halo { stroke: #000; stroke-opacity: .28; stroke-width: 2.4; }
.box rect { fill: none; stroke: #ffd500; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.axes .halo { stroke: #000; stroke-opacity: .55; }
.axes circle { stroke-width: 3; }
.axes text { font: bold 15px system-ui, sans-serif; text-anchor: middle; dominant-baseline: middle;
  paint-order: stroke; stroke: #000; stroke-opacity: .7; stroke-width: 3px; }
#show-box:not(:checked) ~ main .box, #show-wire:not(:checked) ~ main .wire,
#show-axes:not(:checked) ~ main .axes { display: none; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="faint">$summary</p>
<nav>$links</nav>
<details><summary>Statistics</summary><pre>$statistics</pre></details>
</header>
<input class="layer" type="checkbox" id="show-box" checked><label for="show-box">box</label>
<input class="layer" type="checkbox" id="show-wire" checked><label for="show-wire">CAD wireframe</label>
<input class="layer" type="checkbox" id="show-axes" checked><label for="show-axes">axes</label>
<span class="faint">green: the object's front, blue: up, red: its own left$legend</span>
<main>
$sections
</main>
</body>
</html>
""")
