// The page: what the reader chose, the parts in order, and changes while the run goes on.

const data = JSON.parse(document.getElementById("data").textContent);
const state = {
  axis: "step", behind: true, smooth: 0, filter: "", off: new Set(), wide: new Set(),
  sampled: null, sampleAt: null, configured: null, allSettings: false, trouble: "",
};
const POLL_MS = 2000;

const PARTS = [
  ["stages", "Stages", overview],
  ["warnings", "Warnings", warnings],
  ["curves", "Curves", curveParts],
  ["coefficients", "Coefficients", coefficientPart],
  ["frontier", "KL against reward", frontierPart],
  ["samples", "Samples", samples],
  ["lineage", "Lineage", lineage],
  ["settings", "Settings", settings],
  ["machine", "Hardware and throughput", machine],
];

/** New children for an element known by its id; what is false or null is none. */
function put(id, ...children) {
  document.getElementById(id).replaceChildren(...children.flat(9).filter(Boolean));
}

function metricChart(metric) {
  const { lines, notes, bounds, bad, end } = linesOf(data, state, metric);
  return chart({ key: metric, title: metric, unit: data.metrics[metric][1], lines, notes, bounds, bad, end, whole: state.axis !== "time",
    xName: AXES[state.axis], xUnit: "", time: state.axis === "time", moved: bounds.length > 0 }, state);
}

/** The name of a metric without where it was measured, so that training and held-out rows stand side by side. */
function bare(metric) {
  return metric.replace(/^eval\//, "").replace(/^completions\//, "");
}

/** In words, what was not measured in which of the stages that are shown. */
function absences(section) {
  const found = new Map();
  for (const [run, stage] of visible(data, state)) for (const [what, where] of stage.missing)
    if (where === section) found.set(what, [...(found.get(what) || []), data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name]);
  return [...found].map(([what, names]) => `No ${what} was measured in ${names.length > 6 ? `${names.slice(0, 6).join(", ")} and ${names.length - 6} more` : names.join(", ")}.`);
}

function curveParts() {
  const words = state.filter.toLowerCase(), any = Object.keys(data.metrics).length > 0;
  if (!any) return [h("p", { class: "empty" }, "No stage has written metrics yet.")];
  return data.order.map((section) => {
    const names = Object.keys(data.metrics).filter((name) => data.metrics[name][0] === section && name.toLowerCase().includes(words))
      .sort((a, b) => bare(a).localeCompare(bare(b)) || a.length - b.length);
    const absent = words ? [] : absences(section);
    if (!names.length && !absent.length) return null;
    return [h("h3", { id: `section-${section.toLowerCase().replace(/\W+/g, "-")}` }, section),
      names.length > 0 && h("div", { class: "grid" }, names.map(metricChart)), absent.map((text) => h("p", { class: "empty" }, text))];
  });
}

function frontierPart() {
  const kinds = new Map(), without = [];
  for (const [run, stage, tint] of visible(data, state)) {
    if (!stage.frontier.length && stage.steps !== null) without.push(data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name);
    for (const one of stage.frontier) {
      const key = `${one.reward} against ${one.kl}`;
      if (!kinds.has(key)) kinds.set(key, { one, lines: [], notes: new Set() });
      kinds.get(key).lines.push({ label: data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name, colour: tint, x: one.x, y: one.y, step: one.step, low: null, high: null });
      if (one.per > 1) kinds.get(key).notes.add(`a point: mean of up to ${one.per} rows`);
    }
  }
  const charts = [...kinds].map(([key, { one, lines, notes }]) => chart({ key, title: key, unit: "", lines, bounds: [], notes: [...notes, "the large dot is the last step"],
    xName: `KL to the reference, ${one.kl}`, xUnit: one.kl.startsWith("eval/") ? "nats per answer" : "nats per token", scatter: true }, state));
  return [h("p", { class: "note" }, "How much reward the policy has gained for how far it went from its reference. A curve that goes right and down is over-optimised: the reward that is measured no longer means what it did."),
    charts.length ? h("div", { class: "grid" }, charts) : null,
    without.length > 0 && h("p", { class: "empty" }, `No KL was measured together with a reward in ${without.join(", ")}.`),
    !charts.length && !without.length && h("p", { class: "empty" }, "No stage has KL and reward yet.")];
}

function theme() {
  const root = document.documentElement, now = root.dataset.theme || "as the system";
  const next = { "as the system": "light", light: "dark", dark: "as the system" }[now];
  return h("button", { type: "button", id: "theme", onclick: () => {
    if (next === "as the system") delete root.dataset.theme; else root.dataset.theme = next;
    controls();
  } }, `colours: ${now}`);
}

function chip(key, label, tint) {
  return h("button", { type: "button", class: "chip", "aria-pressed": String(!state.off.has(key)), title: "show or hide", onclick: () => {
    state.off.has(key) ? state.off.delete(key) : state.off.add(key);
    controls();
    state.draw();
  } }, tint && h("span", { class: "swatch", colour: tint }), label);
}

function controls() {
  const several = data.runs.length > 1, names = [...new Set(data.runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
  const shownSmooth = h("output", {}, state.smooth.toFixed(2));
  put("controls",
    h("label", {}, "axis ", h("select", { id: "axis", onchange: (event) => { state.axis = event.target.value; state.drawPart("curves"); } },
      Object.entries(AXES).map(([key, name]) => h("option", { value: key, selected: key === state.axis }, name)))),
    h("label", {}, "stages ", h("select", { id: "behind", onchange: (event) => { state.behind = event.target.value === "1"; state.drawPart("curves"); } },
      h("option", { value: "1", selected: state.behind }, "one after another"), h("option", { value: "0", selected: !state.behind }, "from the same start"))),
    h("label", { title: `exponential mean: weight of what came before; curves of fewer than ${SMOOTHED_FROM} points stay as they are` }, "smoothing ", h("input", { type: "range", id: "smooth", min: 0, max: 0.99, step: 0.01, value: state.smooth,
      oninput: (event) => { state.smooth = Number(event.target.value); shownSmooth.textContent = state.smooth.toFixed(2); state.redraw(); } }), shownSmooth),
    h("label", {}, h("input", { type: "search", id: "filter", placeholder: "metrics with …", "aria-label": "show metrics whose name holds this", size: 13, value: state.filter,
      oninput: (event) => { state.filter = event.target.value; state.drawPart("curves"); } })),
    several && h("div", { class: "chips" }, data.runs.map((run, i) => chip(`run ${run.label}`, run.label, colour(i)))),
    h("div", { class: "chips" }, names.map((name, i) => chip(`stage ${name}`, name, several ? null : colour(i)))), theme());
}

function head() {
  const points = data.runs.some((run) => run.stages.some((stage) => stage.curves.groups.some((group) => group.per > 1)));
  put("head",
    h("h1", {}, data.runs.map((run) => run.label).join(" vs ")),
    h("span", { class: "soft" }, data.runs.map((run) => `${run.folder}${run.running ? " (running)" : ""}`).join(", ")),
    data.live && h("span", { id: "live", class: state.trouble ? "bad" : "soft" }, state.trouble || "live: looks for changes every 2 seconds"),
    h("div", { class: "jump" }, PARTS.map(([key, name]) => h("a", { href: `#${key}` }, name))),
    points && h("p", { class: "note" }, "Long curves are thinned out: a point is the mean of neighbouring rows, and the band around it goes from the least to the largest of them, so that no peak is lost. Under each curve stands how many rows a point holds. All rows are in metrics.jsonl."));
}

function drawIn(element) {
  element.querySelectorAll("figure").forEach((figure) => figure.drawn && figure.drawn());
}

state.redraw = () => drawIn(document);
state.drawPart = (key) => {
  const [, , make] = PARTS.find((part) => part[0] === key);
  put(`${key}-body`, make(data, state));
  drawIn(document.getElementById(key));
};
state.draw = () => PARTS.forEach(([key]) => state.drawPart(key));

/** Take in stages that have changed. */
function merge(told) {
  const run = data.runs[0], known = new Map(run.stages.map((stage) => [stage.name, stage]));
  for (const stage of told.run.stages) known.set(stage.name, stage);
  Object.assign(run, told.run, { label: run.label, stages: told.names.map((name) => known.get(name)).filter(Boolean) });
  Object.assign(data.metrics, told.metrics);
  data.number = told.number;
}

async function poll() {
  const before = [data.number, data.runs[0].running, state.trouble].join();
  try {
    const answer = await fetch(`/changes?since=${data.number}`);
    if (!answer.ok) throw new Error(await answer.text());
    merge(await answer.json());
    state.trouble = "";
  } catch (error) {
    state.trouble = "no answer from `unified watch`; what is shown is what it said last";
  }
  if ([data.number, data.runs[0].running, state.trouble].join() !== before) {
    head();
    if (document.getElementById("controls").contains(document.activeElement) === false) controls();
    for (const [key] of PARTS) if (!document.getElementById(key).contains(document.activeElement)) state.drawPart(key);
  }
  setTimeout(poll, POLL_MS);
}

document.getElementById("main").replaceChildren(...PARTS.map(([key, name]) => h("section", { id: key }, h("h2", {}, name), h("div", { id: `${key}-body` }))));
head();
controls();
state.draw();
let wait = 0;
addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(state.redraw, 120); });
if (data.live) setTimeout(poll, POLL_MS);
