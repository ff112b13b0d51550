"use strict";
// Numbers: elements made of text, numbers as a person reads them, ticks, smoothing, and the lines of a metric.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const SMOOTHED_FROM = 30;
const AXES = { step: "steps", tokens: "tokens", time: "time in steps" };

/** An HTML element. Whatever is no element becomes a text node: nothing that is shown is ever read as HTML. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "colour") element.style.setProperty(element.namespaceURI === SVG && element.classList.contains("line")
      ? "stroke" : element.namespaceURI === SVG ? "fill" : "background-color", value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function colour(index) {
  return `var(--c${((index % COLOURS) + COLOURS) % COLOURS})`;
}

/** A value as a tooltip or a table shows it: four digits that matter. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1e3) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

/** Nice places for marks between two values: 1, 2 or 5 times a power of ten apart. */
function ticks(low, high, wanted, whole) {
  const rough = (high - low) / Math.max(wanted, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((m) => m * power >= rough * 0.7) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(i * step);
  return { at: out, step };
}

/** Marks of an axis as texts; all in one unit, with as many digits as the distance between them needs. */
function labels(at, step) {
  const largest = Math.max(...at.map(Math.abs), 0);
  if (largest === 0) return at.map(() => "0");
  if (largest < 1e-3) return at.map((v) => (v === 0 ? "0" : v.toExponential(1).replace(".0e", "e")));
  const [unit, letter] = largest >= 1e12 ? [1e12, "T"] : largest >= 1e9 ? [1e9, "G"] : largest >= 1e6 ? [1e6, "M"]
    : largest >= 1e4 ? [1e3, "k"] : [1, ""];
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(step / unit) + 1e-9)));
  return at.map((v) => (v === 0 ? "0" : (v / unit).toFixed(digits) + letter));
}

/** The unit in which a time axis is read: [seconds of it, its name]. */
function timeUnit(most) {
  return most >= 3 * 86400 ? [86400, "days"] : most >= 2 * 3600 ? [3600, "hours"] : most >= 180 ? [60, "minutes"] : [1, "seconds"];
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function plural(number, one, many) {
  return `${number.toLocaleString("en-US")} ${number === 1 ? one : many || one + "s"}`;
}

/** Exponential mean with the weight of what came before; the first values are not drawn towards 0. Few are left alone. */
function smoothed(values, weight) {
  if (!weight || values.length < SMOOTHED_FROM) return values;
  let sum = 0, part = 0;
  return values.map((v) => {
    sum = weight * sum + (1 - weight) * v;
    part = weight * part + (1 - weight);
    return sum / part;
  });
}

/** Where each stage of a run that is shown begins on an axis: behind those before it, or all at 0; and where all end. */
function offsets(run, state) {
  let total = 0, end = 0;
  const begin = {}, { axis, behind } = state;
  for (const stage of run.stages.filter((one) => isOn(state, run, one))) {
    begin[stage.name] = behind ? total : 0;
    let most = 0;
    for (const group of stage.curves.groups) {
      const places = group.axes[axis];
      if (places && places.length) most = Math.max(most, places[places.length - 1]);
    }
    total += most;
    end = Math.max(end, begin[stage.name] + most);
  }
  return { begin, end };
}

/** The lines of one metric under what the reader chose, and what of it cannot be shown. */
function linesOf(data, state, metric) {
  const lines = [], notes = [], bounds = new Set();
  let bad = 0, per = 1, last = 0;
  data.runs.forEach((run, r) => {
    const { begin: start, end } = offsets(run, state);
    last = Math.max(last, end);
    Object.values(start).filter((at) => at > 0).forEach((at) => bounds.add(at));
    run.stages.forEach((stage, number) => {
      if (!isOn(state, run, stage)) return;
      bad += stage.curves.not_finite[metric] || 0;
      const group = stage.curves.groups.find((g) => metric in g.series);
      if (!group) return;
      const places = group.axes[state.axis];
      if (!places) {
        notes.push(`${stage.name} has no ${AXES[state.axis]}`);
        return;
      }
      const series = group.series[metric], thin = !Array.isArray(series);
      per = Math.max(per, group.per);
      const x = places.map((v) => v + start[stage.name]);
      lines.push({
        label: data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name,
        colour: colour(data.runs.length > 1 ? r : number),
        x, y: thin ? series.mean : series, low: thin ? series.min : null, high: thin ? series.max : null,
        step: group.axes.step, per: group.per,
      });
    });
  });
  if (bad) notes.push(`${plural(bad, "value was", "values were")} not finite and ${bad === 1 ? "is" : "are"} left out`);
  if (per > 1) notes.push(`a point: mean of up to ${per} rows; the band: their least and largest`);
  return { lines, notes, bounds: [...bounds], bad, end: last };
}

/** Whether the reader wants to see a stage of a run. */
function isOn(state, run, stage) {
  return !state.off.has(`stage ${stage.name}`) && !state.off.has(`run ${run.label}`);
}
