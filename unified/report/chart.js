// A chart: axes, curves with the raw values behind them, and the values under the pointer.

const LEFT = 12, RIGHT = 12, TOP = 8, BOTTOM = 36;

/**
 * Draws lines into a figure. spec: {title, unit, lines, bounds, end, notes, xName, xUnit, whole,
 * scatter, bad}; end: where the axis ends, which is the same for all charts that share one.
 * A line: {label, colour, x, y, low, high, step, per}. scatter: points in the order of time, neither axis is one of time.
 */
function chart(spec, state) {
  const figure = h("figure", { class: state.wide.has(spec.key) ? "wide" : null, "data-chart": spec.key });
  const wide = state.wide.has(spec.key);
  figure.append(h("figcaption", {}, h("b", {}, spec.title), spec.unit && h("span", { class: "unit" }, spec.unit),
    h("button", { type: "button", title: wide ? "as small as the others" : "over the whole width",
      "aria-label": `${wide ? "make small" : "make wide"}: ${spec.title}`,
      onclick: () => { wide ? state.wide.delete(spec.key) : state.wide.add(spec.key); state.draw(); } }, wide ? "small" : "wide")));
  const lines = spec.lines.filter((line) => line.x.length);
  if (!lines.length) {
    figure.append(h("p", { class: "empty" }, spec.notes.length ? spec.notes.join("; ") : "nothing to show in the stages that are switched on"));
    return figure;
  }
  const holder = h("div", {});
  figure.append(holder);
  if (spec.notes.length) figure.append(h("div", { class: `note${spec.bad ? " bad" : ""}` }, spec.notes.join("; ")));
  figure.drawn = () => holder.replaceChildren(drawing(spec, lines, state, holder.clientWidth || 400, wide ? 360 : 210));
  return figure;
}

/** The curve, and in front of it values as they are where it is smoothed. */
function prepared(lines, spec, state) {
  return lines.map((line) => ({ ...line, smooth: spec.scatter ? line.y : smoothed(line.y, state.smooth) }));
}

function extent(lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const v of list) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

function padded([low, high], from) {
  if (high - low <= Math.max(Math.abs(low), Math.abs(high)) * 1e-9) { // also where only the last bit of a mean differs
    const by = Math.abs(low) * 0.1 || 1;
    return [low - by, high + by];
  }
  const by = (high - low) * 0.06;
  return [from === 0 && low >= 0 && low - by < 0 ? 0 : low - by, high + by];
}

function drawing(spec, given, state, width, height) {
  const lines = prepared(given, spec, state);
  const [y0, y1] = padded(extent(lines.flatMap((l) => [l.smooth, l.low || l.y, l.high || l.y])), 0);
  let [x0, x1] = spec.scatter ? extent(lines.map((l) => l.x)) : [0, spec.end];
  if (spec.scatter || x0 >= x1) [x0, x1] = padded([x0, x1], 0);
  const [unit, unitName] = spec.time ? timeUnit(x1) : [1, spec.xUnit];
  const yTicks = ticks(y0, y1, Math.max(3, height / 48)), yTexts = labels(yTicks.at, yTicks.step);
  const left = LEFT + 7 * Math.max(...yTexts.map((t) => t.length), 1);
  const inner = Math.max(width - left - RIGHT, 60), down = height - TOP - BOTTOM;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * inner, py = (y) => TOP + (1 - (y - y0) / (y1 - y0)) * down;
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
    "aria-label": `${spec.title} over ${spec.xName}, ${plural(lines.length, "curve")}` });
  yTicks.at.forEach((v, i) => svg.append(
    s("line", { class: "gridline", x1: left, x2: left + inner, y1: py(v), y2: py(v) }),
    s("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, yTexts[i])));
  const xTicks = ticks(x0 / unit, x1 / unit, Math.max(2, inner / 85), spec.whole);
  const xTexts = labels(xTicks.at, xTicks.step);
  xTicks.at.forEach((v, i) => svg.append(
    s("line", { class: "axis", x1: px(v * unit), x2: px(v * unit), y1: TOP + down, y2: TOP + down + 4 }),
    s("text", { x: px(v * unit), y: TOP + down + 16, "text-anchor": "middle" }, xTexts[i])));
  svg.append(s("line", { class: "axis", x1: left, x2: left + inner, y1: TOP + down, y2: TOP + down }),
    s("text", { x: left + inner / 2, y: height - 4, "text-anchor": "middle" }, unitName ? `${spec.xName} (${unitName})` : spec.xName));
  for (const b of spec.bounds) if (b > x0 && b < x1) svg.append(s("line", { class: "bound", x1: px(b), x2: px(b), y1: TOP, y2: TOP + down }));
  for (const line of lines) draw(svg, line, px, py, spec, state);
  hover(svg, lines, { px, py, ux: (x) => x0 + ((x - left) / inner) * (x1 - x0), left, inner, down, spec, width });
  return svg;
}

function path(x, y, px, py) {
  return x.map((v, i) => `${i ? "L" : "M"}${px(v).toFixed(1)} ${py(y[i]).toFixed(1)}`).join("");
}

function draw(svg, line, px, py, spec, state) {
  if (line.low && line.x.length > 1) {
    const back = line.x.map((v, i) => `L${px(v).toFixed(1)} ${py(line.low[i]).toFixed(1)}`).reverse().join("");
    svg.append(s("path", { class: "band", d: `${path(line.x, line.high, px, py)}${back}Z`, colour: line.colour }));
  }
  if (line.smooth !== line.y)
    svg.append(s("path", { class: "line raw", d: path(line.x, line.y, px, py), colour: line.colour }));
  if (line.x.length > 1) svg.append(s("path", { class: "line curve", d: path(line.x, line.smooth, px, py), colour: line.colour }));
  const dots = spec.scatter ? line.x.map((_, i) => i) : line.x.length <= 3 ? line.x.map((_, i) => i) : [];
  const last = line.x.length - 1;
  for (const i of dots) {
    svg.append(s("circle", { class: "dot", cx: px(line.x[i]).toFixed(1), cy: py(line.smooth[i]).toFixed(1),
      r: spec.scatter && last > 0 && i !== last ? 2.2 : 4.5, colour: line.colour }));
  }
}

/** Index of the value nearest to x in a list that never falls. */
function nearest(list, x) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(list[low] - x) <= Math.abs(list[high] - x) ? low : high;
}

function hover(svg, lines, at) {
  const cross = s("line", { class: "cross", y1: TOP, y2: TOP + at.down, visibility: "hidden" });
  const area = s("rect", { x: at.left, y: TOP, width: at.inner, height: at.down, fill: "transparent" });
  const marks = s("g", {});
  svg.append(cross, marks, area);
  const leave = () => { cross.setAttribute("visibility", "hidden"); marks.replaceChildren(); document.getElementById("tip").hidden = true; };
  area.addEventListener("pointerleave", leave);
  area.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = at.width / box.width;
    const mx = (event.clientX - box.left) * scale, my = (event.clientY - box.top) * scale;
    const found = (at.spec.scatter ? nearestPoints : nearestPlaces)(lines, at, mx, my);
    if (!found.length) { leave(); return; }
    const x = at.px(found[0].line.x[found[0].index]);
    cross.setAttribute("x1", x); cross.setAttribute("x2", x);
    cross.setAttribute("visibility", at.spec.scatter ? "hidden" : "visible");
    marks.replaceChildren(...found.map(({ line, index }) => s("circle", { class: "dot", r: 4, colour: line.colour,
      cx: at.px(line.x[index]), cy: at.py(line.smooth[index]) })));
    tip(event, found, at.spec);
  });
}

/** Of every line the point nearest to the pointer's x, as far as it is about as near as the nearest of all. */
function nearestPlaces(lines, at, mx) {
  const all = lines.map((line) => {
    const index = nearest(line.x, at.ux(mx));
    return { line, index, far: Math.abs(at.px(line.x[index]) - mx) };
  });
  const best = Math.min(...all.map((one) => one.far));
  return all.filter((one) => one.far <= best + 6).sort((a, b) => b.line.smooth[b.index] - a.line.smooth[a.index]).slice(0, 12);
}

function nearestPoints(lines, at, mx, my) {
  let best = null;
  for (const line of lines) line.x.forEach((x, index) => {
    const far = Math.hypot(at.px(x) - mx, at.py(line.y[index]) - my);
    if (!best || far < best.far) best = { line, index, far };
  });
  return best && best.far < 60 ? [best] : [];
}

/** The values under the pointer, beside it and inside the window. */
function tip(event, found, spec) {
  const box = document.getElementById("tip"), first = found[0], x = first.line.x[first.index];
  const where = spec.scatter ? `step ${shown(first.line.step[first.index])}`
    : `${spec.time ? duration(x) : plural(Math.round(x), spec.xName.slice(0, -1))}${spec.moved ? " from the start" : ""}`;
  box.replaceChildren(h("div", {}, h("span", { class: "soft" }, where)), ...found.map(({ line, index }) => h("div", {},
    h("span", { class: "swatch", colour: line.colour }), h("span", {}, line.label, spec.time || spec.moved ? `, step ${shown(line.step[index])}` : ""),
    h("b", {}, spec.scatter ? `${shown(line.x[index])} → ${shown(line.y[index])}` : shown(line.y[index]),
      line.low && ` [${shown(line.low[index])} … ${shown(line.high[index])}]`, line.smooth !== line.y && `, smoothed ${shown(line.smooth[index])}`))));
  box.hidden = false;
  const width = box.offsetWidth, height = box.offsetHeight;
  box.style.left = `${Math.max(4, event.clientX + 14 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 14)}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - height - 6))}px`;
}
