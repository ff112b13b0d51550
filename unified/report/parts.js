// The parts of the page that are no curves: stages, warnings, samples, lineage, settings, machine.

function table(heads, rows, classes) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { class: classes && classes[i] }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => cell instanceof Node && cell.tagName === "TD" ? cell
      : h("td", { class: classes && classes[i] }, cell)))))));
}

/** [run, stage, colour] of everything that is switched on. */
function visible(data, state) {
  return data.runs.flatMap((run, r) => run.stages.map((stage, i) => [run, stage, colour(data.runs.length > 1 ? r : i)]))
    .filter(([run, stage]) => isOn(state, run, stage));
}

function stageCell(data, run, stage, tint) {
  return h("span", { class: "name" }, h("span", { class: "swatch", colour: tint }), data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name);
}

/** What was measured on held-out rows: reward, KL, accuracy, loss and length first, four numbers at most. */
function heldOut(stage) {
  const rank = ([name]) => [/\/reward$/, /\/kl$/, /accurac/, /loss$/, /length$/, /./].findIndex((one) => one.test(name));
  const found = stage.summary.filter(([name]) => name.startsWith("eval/")).sort((a, b) => rank(a) - rank(b));
  const wanted = found.filter((one) => rank(one) < 5);
  const best = stage.summary.find(([name]) => name === "best_step"); // the weights that were kept are those of this step
  const kept = best && best[1] !== stage.steps ? ` (step ${shown(best[1])}, whose weights were kept)` : "";
  const said = (wanted.length ? wanted : found).slice(0, 4).map(([name, value]) => `${name.slice(5)} ${shown(value)}`).join(", ");
  return said ? said + kept : "–";
}

function overview(data, state) {
  const rows = visible(data, state).map(([run, stage, tint]) => [
    stageCell(data, run, stage, tint), stage.what || stage.kind,
    h("span", { class: `state-${stage.state.split(" ")[0]}` }, stage.state),
    stage.steps === null ? "–" : stage.state !== "done" && stage.planned > 0 ? `${stage.steps} of ${stage.planned}` : shown(stage.steps),
    heldOut(stage), duration(stage.seconds), stage.speed ? shown(stage.speed.mean) : "–",
  ]);
  const said = data.runs.filter((run) => run.said.length).map((run) => h("p", { class: "note" }, data.runs.length > 1 ? `${run.label}: ` : "",
    run.said.map(([key, value]) => `${key} ${value}`).join("; ")));
  return [table(["stage", "algorithm or kind", "state", "steps", "held-out", "time", "tokens per second"], rows,
    ["", "", "", "number", "", "number", "number"]), said];
}

function warnings(data, state) {
  const told = [], counted = [], errors = [];
  for (const [run, stage, tint] of visible(data, state)) {
    for (const [kind, message, times, first, last, remedy] of stage.warnings) told.push([stageCell(data, run, stage, tint), h("span", { class: "warning name" }, kind),
      shown(times), first === last ? shown(first) : `${shown(first)} … ${shown(last)}`, message, remedy || "–"]);
    for (const [what, number] of stage.counts) counted.push([stageCell(data, run, stage, tint), what, number === null ? "" : shown(number)]);
    if (stage.error) errors.push(h("h3", {}, `How ${stage.name} failed`), h("pre", {}, stage.error));
  }
  return [errors,
    told.length ? table(["stage", "kind", "times", "steps", "what was seen first", "what to do"], told, ["", "", "number", "number", "", ""])
      : h("p", { class: "empty" }, "No warning was raised in these stages."),
    counted.length > 0 && [h("h3", {}, "Counted"), table(["stage", "what", "number"], counted, ["", "", "number"])]];
}

/** Samples through time: a stage, a step on a slider, its answers. */
function samples(data, state) {
  const all = visible(data, { ...state, off: new Set() }).filter(([, stage]) => stage.samples.length);
  const none = data.runs.flatMap((run) => run.stages).filter((stage) => stage.state !== "to do" && !stage.samples.length).map((stage) => stage.name);
  const absent = none.length > 0 && h("p", { class: "empty" }, `No samples were written in ${[...new Set(none)].join(", ")}.`);
  if (!all.length) return [h("p", { class: "empty" }, "No stage has written samples yet.")];
  const name = ([run, stage]) => `${run.label}\u0000${stage.name}`;
  const chosen = all.find((one) => name(one) === state.sampled) || all[all.length - 1];
  const stage = chosen[1], steps = [...new Set(stage.samples.map((row) => row[0]))];
  const at = state.sampleAt === null ? steps.length - 1 : Math.min(state.sampleAt, steps.length - 1);
  const body = h("div", {}), where = h("output", {});
  const slider = h("input", { type: "range", class: "steps", id: "sample-step", min: 0, max: steps.length - 1, value: at, "aria-label": "step of the samples" });
  const show = (index) => {
    where.textContent = shown(steps[index]);
    body.replaceChildren(table(["prompt", "answer", "reward", "ended by"], stage.samples.filter((row) => row[0] === steps[index]).map((row) => [
      h("td", { class: "text" }, row[1]), h("td", { class: "text" }, row[2] === "" ? h("span", { class: "empty" }, "(empty)") : row[2]),
      shown(row[3]), row[4] || "–"]), ["", "", "number", ""]));
  };
  slider.addEventListener("input", () => { const to = Number(slider.value); state.sampleAt = to === steps.length - 1 ? null : to; show(to); });
  show(at);
  const pick = h("select", { id: "sample-stage", onchange: (event) => { state.sampled = event.target.value; state.sampleAt = null; state.drawPart("samples"); } },
    all.map((one) => h("option", { value: name(one), selected: one === chosen }, data.runs.length > 1 ? `${one[0].label} · ${one[1].name}` : one[1].name)));
  const counts = stage.sample_counts;
  return [h("div", { class: "row" }, h("label", {}, "stage ", pick), steps.length > 1 && h("label", {}, "step ", slider), where), body,
    h("p", { class: "note" }, `${plural(steps.length, "step")} of ${counts.steps.toLocaleString("en-US")} that have samples ${steps.length === 1 ? "is" : "are"} on this page`,
      counts.cut ? `; ${plural(counts.cut, "long text was", "long texts were")} cut, with the length said` : "", ". All are in samples.jsonl beside the model."), absent];
}

/** Stages as boxes from left to right, each behind what it was made from. */
function lineage(data) {
  return data.runs.map((run) => [data.runs.length > 1 && h("h3", {}, run.label),
    !run.stages.length ? h("p", { class: "empty" }, "This run has no stage.") : run.stages.length > 40 ? lineageTable(run) : h("div", { class: "lineage" }, diagram(run))]);
}

function lineageTable(run) {
  return table(["stage", "from", "data", "makes"], run.stages.map((stage) => [stage.name, stage.inputs.map((i) => i === "base" ? run.base : i).join(", "), stage.data.join(", "), makes(stage)]));
}

function makes(stage) {
  return [stage.model && "a model", stage.dataset && "a dataset"].filter(Boolean).join(" and ") || (stage.state === "done" ? "no model" : "not done yet");
}

function nodes(run) {
  const found = new Map();
  for (const stage of run.stages) {
    const inputs = stage.inputs.length ? stage.inputs : stage.kind === "train" ? ["base"] : [];
    for (const input of inputs) if (!input.startsWith("stage:") && !found.has(input))
      found.set(input, { id: input, start: true, lines: [input === "base" ? "base model" : input, input === "base" ? run.base : "a model from elsewhere"], from: [], depth: 0 });
    const from = inputs.map((i) => i.startsWith("stage:") ? i.slice(6) : i);
    found.set(`stage ${stage.name}`, { id: `stage ${stage.name}`, from, depth: 1, lines: [stage.name,
      stage.what && stage.what !== stage.name ? stage.what : stage.kind, stage.data.length ? `data: ${stage.data.join(", ")}` : "no data of its own", stage.model || stage.dataset ? `makes ${makes(stage)}` : makes(stage)] });
  }
  const node = (name) => found.get(`stage ${name}`) || found.get(name);
  for (const one of found.values()) {
    one.behind = one.from.map(node).filter((n) => n && n !== one);
    one.depth = Math.max(one.start ? 0 : 1, ...one.behind.map((n) => n.depth + 1));
  }
  return [...found.values()];
}

/** Columns of nodes from left to right; an edge that crosses a column has a narrow place of its own there. */
function columnsOf(all) {
  const columns = Array.from({ length: Math.max(...all.map((node) => node.depth)) + 1 }, () => []), edges = [];
  for (const node of all) columns[node.depth].push(Object.assign(node, { high: 78 }));
  for (const node of all) for (const before of node.behind) {
    const way = [before];
    for (let depth = before.depth + 1; depth < node.depth; depth++) {
      const place = { depth, high: 12, behind: [way[way.length - 1]], passing: true };
      columns[depth].push(place);
      way.push(place);
    }
    edges.push([...way, node]);
  }
  columns.forEach((column, i) => {
    const mean = (node) => node.behind.length ? node.behind.reduce((sum, one) => sum + (one.order || 0), 0) / node.behind.length : 0;
    if (i) column.sort((a, b) => mean(a) - mean(b));
    column.forEach((node, order) => { node.order = order; });
  });
  return { columns, edges };
}

function diagram(run) {
  const WIDE = 190, GAPX = 70, GAPY = 18, { columns, edges } = columnsOf(nodes(run));
  const tall = (column) => column.reduce((sum, node) => sum + node.high + GAPY, -GAPY), height = Math.max(...columns.map(tall));
  columns.forEach((column, depth) => {
    let y = (height - tall(column)) / 2;
    for (const node of column) {
      Object.assign(node, { x: depth * (WIDE + GAPX), y, middle: y + node.high / 2 });
      y += node.high + GAPY;
    }
  });
  const width = columns.length * (WIDE + GAPX) - GAPX;
  const svg = s("svg", { viewBox: `-2 -2 ${width + 4} ${height + 4}`, width: width + 4, height: height + 4, role: "img", "aria-label": "which stage was made from which" });
  for (const way of edges) {
    let d = `M${way[0].x + WIDE} ${way[0].middle}`;
    way.slice(1).forEach((node, i) => {
      const from = way[i].x + WIDE, to = node.x - (node.passing ? 0 : 7), middle = (from + to) / 2;
      d += `C${middle} ${way[i].middle} ${middle} ${node.middle} ${to} ${node.middle}${node.passing ? `H${node.x + WIDE}` : ""}`;
    });
    const last = way[way.length - 1];
    svg.append(s("path", { class: "edge", d }), s("path", { class: "arrow", d: `M${last.x - 7} ${last.middle - 4}L${last.x} ${last.middle}L${last.x - 7} ${last.middle + 4}Z` }));
  }
  for (const node of columns.flat()) {
    if (node.passing) continue;
    const group = s("g", {}, s("title", {}, node.lines.join("\n")), s("rect", { class: `box${node.start ? " start" : ""}`, x: node.x, y: node.y, width: WIDE, height: node.high, rx: 7 }));
    node.lines.forEach((line, i) => group.append(s("text", { class: i ? null : "title", x: node.x + 10, y: node.y + 19 + i * 17 },
      line.length > 27 ? `${line.slice(0, 26)}…` : line)));
    svg.append(group);
  }
  return svg;
}

/** Settings: of one stage what it had; of several runs the same stage side by side. */
function settings(data, state) {
  const names = [...new Set(data.runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
  const name = names.includes(state.configured) ? state.configured : names[0];
  const columns = data.runs.map((run) => [run, run.stages.find((stage) => stage.name === name)]).filter(([, stage]) => stage);
  const values = columns.map(([, stage]) => new Map(stage.settings)), several = columns.length > 1;
  const given = new Set(columns.flatMap(([, stage]) => stage.given));
  const isGiven = (key) => [...given].some((one) => [one, `${one}.name`, `${one}.path`].includes(key)); // `data: FILE` sets data.path
  const differs = (key) => several && new Set(values.map((v) => v.get(key))).size > 1;
  const keys = [...new Set(values.flatMap((v) => [...v.keys()]))].filter((key) => state.allSettings || (several ? differs(key) : isGiven(key)));
  const left = columns.reduce((sum, [, stage]) => sum + stage.settings_left_out, 0);
  const body = keys.length ? table(["setting", ...columns.map(([run]) => several ? run.label : "value")], keys.map((key) => [
    h("td", { class: `key${isGiven(key) ? " given" : ""}` }, key),
    ...values.map((v) => h("td", { class: `text${differs(key) ? " other" : ""}` }, v.has(key) ? v.get(key) : "–"))]))
    : h("p", { class: "empty" }, several ? "No setting of this stage differs." : "The recipe sets nothing here; all settings are defaults.");
  const missing = data.runs.length > columns.length && h("p", { class: "empty" }, `${plural(data.runs.length - columns.length, "run has", "runs have")} no stage of this name.`);
  return [h("div", { class: "row" },
    h("label", {}, "stage ", h("select", { id: "settings-stage", onchange: (event) => { state.configured = event.target.value; state.drawPart("settings"); } },
      names.map((one) => h("option", { value: one, selected: one === name }, one)))),
    h("label", {}, h("input", { type: "checkbox", checked: state.allSettings, onchange: (event) => { state.allSettings = event.target.checked; state.drawPart("settings"); } }),
      several ? "also those that do not differ" : "also what the recipe leaves at its default"),
    h("span", { class: "note" }, "bold: set by the recipe")), body, missing,
    left > 0 && h("p", { class: "note" }, `${plural(left, "setting")} did not fit on this page; all are in manifest.json of the stage.`)];
}

/** Speed of every stage; what is the same for all of them is said once. */
function machine(data, state) {
  const all = visible(data, state), keys = [...new Set(all.flatMap(([, stage]) => stage.facts.map(([key]) => key)))];
  const value = (stage, key) => (stage.facts.find(([k]) => k === key) || [])[1];
  const known = all.filter(([, stage]) => stage.facts.length);
  const same = keys.filter((key) => known.length > 0 && new Set(known.map(([, stage]) => value(stage, key))).size === 1);
  const own = keys.filter((key) => !same.includes(key));
  const rows = all.map(([run, stage, tint]) => [stageCell(data, run, stage, tint),
    ...(stage.speed ? [shown(stage.speed.tokens), duration(stage.speed.seconds), shown(stage.speed.mean), shown(stage.speed.median)] : ["–", "–", "–", "–"]),
    duration(stage.seconds), ...own.map((key) => value(stage, key) || "–")]);
  return [table(["stage", "tokens", "time in steps", "tokens per second", "of the median step", "time in all", ...own], rows, ["", "number", "number", "number", "number", "number"]),
    same.length ? [h("h3", {}, "The same for all of these stages"), table(["what", "value"], same.map((key) => [key, value(known[0][1], key)]))]
      : h("p", { class: "empty" }, "No manifest is there yet, so nothing is known of versions and threads."),
    !keys.some((key) => /^(device|processor|accelerator|machine)/.test(key)) && h("p", { class: "empty" }, "The stages wrote nothing about the processor or accelerator that they ran on.")];
}
