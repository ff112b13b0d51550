// The picture: for each answer its tokens, and under them a row for every head of every algorithm.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { strip: 0, at: 0, show: "push", all: false, off: new Set() };
const NAMES = { logp: "log-prob now", old_logp: "old log-prob", ref_logp: "reference log-prob", sampling_logp: "log-prob of sampling",
  teacher_logp: "teacher log-prob", ratio: "ratio to old", kl: "log-ratio to reference (KL, nats)", advantage: "advantage", returns: "returns",
  value: "value now", old_value: "old value", score: "score", entropy: "entropy (nats)", reward: "reward" };
const NARROW = 700, PADDING = 18, MANY = 30;
let cells = new Map();

const strip = () => data.strips[state.strip];
const picture = () => strip().pictures[state.at];
const list = (place) => (place === null || place === undefined ? null : data.pool[place]);

/** Rows to draw: [column, its number, head], without those that are alike another or switched off. */
function rows(of) {
  return of.columns.flatMap((column, number) => (state.off.has(column.name) || (!state.all && column.same !== number)) ? []
    : Object.keys(column.heads).map((head) => ({ column, number, head })));
}

function others(of, number) {
  return of.columns.filter((column, i) => column.same === number && i !== number).map((column) => column.name);
}

function label({ column, number, head }, of) {
  const heads = Object.keys(column.heads), alike = state.all ? [] : others(of, number);
  const name = heads.length > 1 || head !== "logp" ? `${column.name} · ${head}` : column.name;
  return alike.length ? `${name} = ${alike.join(" = ")}` : name;
}

function value(row, answer, t) {
  const head = row.column.heads[row.head], gc = list(head.gc[answer]);
  if (gc === null) return undefined;
  if (gc[t] === null) return null;
  return state.show === "push" ? head.w[answer] * gc[t] : gc[t];
}

/** The largest size of a row's numbers over all steps: one scale per algorithm and head. */
const scales = new Map();
function scale(row) {
  const key = JSON.stringify([state.strip, state.show, row.column.name, row.head]);
  if (!scales.has(key)) {
    let most = 0;
    for (const one of strip().pictures) for (const column of one.columns) if (column.name === row.column.name && column.heads[row.head]) {
      const head = column.heads[row.head];
      head.gc.forEach((place, a) => { for (const gc of list(place) || []) most = Math.max(most, Math.abs(state.show === "push" ? head.w[a] * gc : gc)); });
    }
    scales.set(key, most);
  }
  return scales.get(key);
}

function clipped(row, answer, t) {
  const cut = list((row.column.clipped[row.head] || [])[answer]);
  return cut === null ? null : Boolean(cut[t]);
}

function told(row, answer, t) {
  const head = row.column.heads[row.head], gc = list(head.gc[answer]), cut = clipped(row, answer, t);
  if (gc === null) return [["", "this algorithm has no part in this answer"]];
  const fields = Object.entries(row.column.fields).map(([name, places]) => [NAMES[name] || name, plain((list(places[answer]) || [])[t], 5)]);
  return [...fields, [`GC of ${row.head}`, signed(gc[t], 5)], [`w (${head.aggregation})`, plain(head.w[answer], 5)],
    ["w · GC", signed(gc[t] === null ? null : head.w[answer] * gc[t], 5)], ...(cut === null ? [] : [["clipped", cut ? "yes" : "no"]])];
}

function cell(row, of, answer, t, mask) {
  const v = value(row, answer, t), cut = clipped(row, answer, t), most = scale(row);
  const kind = v === undefined || !mask[t] ? "none" : v > 0 ? "up" : v < 0 ? "down" : "zero";
  const words = kind === "none" ? "·" : signed(v) + (cut ? " ✂" : "");
  const made = h("td", { class: `${kind}${cut ? " cut" : ""}`, tabindex: -1, "aria-label": `${label(row, of)}: ${words}${cut ? " clipped" : ""}` }, words);
  if (kind === "up" || kind === "down") made.style.setProperty("--t", `${Math.round(10 + 90 * Math.abs(v) / most)}%`);
  const tokens = list(of.answers[answer].tokens), ids = list(of.answers[answer].ids);
  made.tell = () => showTip(made, `${visible(tokens[t])}  (token ${t}, id ${ids[t]})${mask[t] ? "" : ", carries no gradient"} · ${label(row, of)}`, told(row, answer, t));
  return made;
}

/** Tokens in lines as wide as the page; each line is a table with a row for every algorithm. */
function answerLines(of, answer, letter, width) {
  const tokens = list(of.answers[answer].tokens), mask = list(of.answers[answer].mask), drawn = rows(of);
  const narrow = width < NARROW, beside = narrow ? 100 : 160 + 90; // the names, and the sum behind the last line
  const lines = [];
  let room = 0;
  tokens.forEach((token, t) => {
    const longest = Math.max(visible(token).length, ...drawn.map((row) => (signed(value(row, answer, t)) + (clipped(row, answer, t) ? " ✂" : "")).length));
    const wide = longest * letter + PADDING;
    if (!lines.length || room < wide) { lines.push([]); room = width - beside; }
    lines[lines.length - 1].push(t);
    room -= wide;
  });
  return h("div", { class: "lines" }, lines.map((line, number) => h("table", {},
    h("thead", {}, h("tr", {}, h("th", { class: "corner" }), line.map((t) => tokenHead(of, answer, t, tokens[t], mask[t])))),
    h("tbody", {}, drawn.map((row, r) => h("tr", {}, h("th", { scope: "row", title: label(row, of) }, label(row, of)),
      line.map((t) => { const made = cell(row, of, answer, t, mask); cells.set(`${answer}/${r}/${t}`, made); made.place = [answer, r, t]; return made; }),
      number === lines.length - 1 && h("td", { class: "total", title: "sum over the answer" }, sum(row, answer) === null ? "no part" : `Σ ${signed(sum(row, answer), 3)}`)))))));
}

/** A sum as it is shown: what is left of numbers that cancel, at the end of their digits, is 0. */
function total(value, size) {
  return Math.abs(value) <= 1e-6 * size ? 0 : value;
}

function sum(row, answer) {
  const gc = list(row.column.heads[row.head].gc[answer]);
  if (gc === null) return null;
  const each = gc.map((_, t) => value(row, answer, t) || 0);
  return total(each.reduce((a, b) => a + b, 0), Math.max(0, ...each.map(Math.abs)));
}

function tokenHead(of, answer, t, token, on) {
  const made = h("th", { scope: "col", class: on ? null : "off" }, visible(token));
  const first = of.columns.find((column) => column.fields.logp && list(column.fields.logp[answer]));
  made.tell = () => showTip(made, `${visible(token)}  (token ${t}, id ${list(of.answers[answer].ids)[t]})${on ? "" : ", carries no gradient"}`,
    [...(first ? [["log-prob now", plain(list(first.fields.logp[answer])[t], 5)]] : []), ...rows(of).map((row) => [label(row, of), signed(value(row, answer, t), 5)])]);
  return made;
}

function answers(of) {
  const probe = h("span", { class: "word" }, "0".repeat(50));
  document.body.append(probe);
  const letter = probe.getBoundingClientRect().width / 50, width = document.getElementById("main").clientWidth - 40;
  probe.remove();
  const prompts = list(of.prompts);
  return prompts.map((prompt, p) => [h("h2", {}, prompts.length > 1 ? `Prompt ${p + 1} of ${prompts.length}` : "Prompt"), h("pre", {}, prompt),
    of.answers.flatMap((answer, a) => answer.row !== p ? [] : h("article", {}, h("h3", {}, `Answer ${1 + of.answers.slice(0, a).filter((o) => o.row === p).length}`,
      h("span", { class: "soft" }, `: ${answer.reward === null ? "no reward" : `reward ${plain(answer.reward)}`}, ${list(answer.tokens).length} tokens${answer.finish === "length" ? ", cut off" : ""}${answer.probe ? ", a probe: compared with, never pushed" : ""}`)),
    answerLines(of, a, letter, width)))]);
}

function summary(of) {
  const drawn = rows(of);
  const lines = drawn.map((row) => {
    const { column, head } = row, sums = column.heads[head].sums;
    return [label(row, of), head, column.heads[head].aggregation, plain(column.loss), signed(sums.raised, 4), signed(sums.lowered, 4), signed(total(sums.sum, sums.raised - sums.lowered), 4),
      column.clipped[head] ? String(column.clipped[head].reduce((n, place) => n + (list(place) || []).reduce((m, c) => m + c, 0), 0)) : "–", plain(scale(row), 3),
      [...column.settings.map(([key, v]) => `${key}: ${v}`), ...column.notes].join("; ")];
  });
  return [h("h2", {}, "Sums"), h("p", { class: "note" }, "Of w · GC over all tokens of all answers: what is raised, what is lowered, and both together. “Most” is the end of the colour scale. Clipped: tokens with an advantage whose ratio has no part in their coefficient."),
    table(["algorithm", "head", "w", "loss", "raised", "lowered", "sum", "clipped", "most", "settings and notes"], lines,
      ["", "", "", "number", "number", "number", "number", "number", "number", ""])];
}

/** Which tokens, wherever they stand, an algorithm lowers and raises most. */
function blamed(of) {
  const lines = rows(of).map((row) => {
    const sums = new Map();
    of.answers.forEach((answer, a) => {
      const gc = list(row.column.heads[row.head].gc[a]), mask = list(answer.mask);
      if (gc !== null) list(answer.tokens).forEach((token, t) => {
        const key = token.trim() || token;
        if (mask[t]) sums.set(key, (sums.get(key) || 0) + row.column.heads[row.head].w[a] * (gc[t] || 0));
      });
    });
    const own = row.column.heads[row.head].sums, most = own.raised - own.lowered, kept = [...sums].map(([token, all]) => [token, total(all, most)]);
    const sorted = kept.sort((a, b) => a[1] - b[1]);
    const words = (some) => some.map(([token, all]) => [h("span", { class: "word" }, visible(token)), ` ${signed(all)}  `]);
    return [label(row, of), words(sorted.filter((one) => one[1] < 0).slice(0, 6)), words(sorted.filter((one) => one[1] > 0).reverse().slice(0, 6))];
  });
  return [h("h2", {}, "Which tokens are blamed"), h("p", { class: "note" }, "w · GC summed over all places where a token stands."),
    table(["algorithm", "lowered most", "raised most"], lines, ["", "", ""])];
}

function draw() {
  const of = picture();
  cells = new Map();
  hideTip();
  const notes = [...data.notes, ...of.notes];
  document.getElementById("main").classList.toggle("many", of.answers.length > MANY);
  put("main", notes.length > 0 && h("ul", { class: "note" }, notes.map((note) => h("li", {}, note))), of.answers.length ? answers(of)
    : h("p", { class: "soft" }, "No answer is left in this picture."), of.columns.length > 0 && [summary(of), blamed(of)],
  of.silent.length > 0 && [h("h2", {}, "What cannot be said of these rows"), table(["algorithm", "why"], of.silent, ["", ""])]);
  for (const made of cells.values()) if (made.place[1] === 0 && made.place[2] === 0) made.tabIndex = 0;
}

function controls() {
  const steps = strip().pictures.map((one) => one.step), several = data.strips.length > 1;
  const shown = h("output", { id: "step" }, steps[state.at] === null ? "" : `step ${steps[state.at]}`);
  const alike = picture().columns.some((column, i) => column.same !== i), names = picture().columns.filter((c, i) => state.all || c.same === i).map((c) => c.name);
  put("controls",
    several && h("label", {}, "stage ", h("select", { id: "stage", onchange: (event) => { state.strip = Number(event.target.value); state.at = 0; state.off.clear(); controls(); draw(); } },
      data.strips.map((one, i) => h("option", { value: i, selected: i === state.strip }, one.name)))),
    steps.length > 1 && h("label", {}, "step ", h("input", { type: "range", id: "slider", min: 0, max: steps.length - 1, step: 1, value: state.at, "aria-label": "step of training",
      oninput: (event) => { state.at = Number(event.target.value); shown.textContent = `step ${steps[state.at]}`; draw(); } }), shown),
    steps.length === 1 && steps[0] !== null && shown,
    h("label", {}, "numbers ", h("select", { id: "show", onchange: (event) => { state.show = event.target.value; draw(); } },
      h("option", { value: "push", selected: state.show === "push" }, "w · GC"), h("option", { value: "gc", selected: state.show === "gc" }, "GC"))),
    alike && h("label", {}, h("input", { type: "checkbox", id: "all", checked: state.all, onchange: (event) => { state.all = event.target.checked; controls(); draw(); } }), "algorithms that are alike apart"),
    names.length > 1 && h("div", { class: "chips" }, names.map((name) => h("button", { type: "button", "aria-pressed": String(!state.off.has(name)), title: "show or hide", onclick: () => {
      state.off.has(name) ? state.off.delete(name) : state.off.add(name);
      controls(); draw();
    } }, name))),
    h("span", { class: "legend" }, "− lowered", h("span", { class: "bar" }), "+ raised, ✂ clipped"), theme());
}

function theme() {
  const root = document.documentElement, now = root.dataset.theme || "as the system";
  const next = { "as the system": "light", light: "dark", dark: "as the system" }[now];
  return h("button", { type: "button", id: "theme", onclick: () => {
    if (next === "as the system") delete root.dataset.theme; else root.dataset.theme = next;
    controls();
  } }, `colours: ${now}`);
}

/** Arrow keys go from token to token and from algorithm to algorithm; Tab goes to the next answer. */
function move(event) {
  const place = event.target.place, by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Escape") hideTip();
  if (!place || !by) return;
  const next = cells.get(`${place[0]}/${place[1] + by[0]}/${place[2] + by[1]}`);
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const main = document.getElementById("main");
main.addEventListener("keydown", move);
main.addEventListener("focusin", (event) => { if (event.target.tell) event.target.tell(); });
main.addEventListener("focusout", hideTip);
main.addEventListener("pointerover", (event) => { if (event.target.tell) event.target.tell(); else hideTip(); });
main.addEventListener("pointerleave", hideTip);
let waiting = 0, width = innerWidth;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; draw(); } }, 150); });
put("head", h("h1", {}, data.title), data.about.map((line) => h("p", { class: "soft" }, line)),
  h("p", { class: "note" }, "Each row is an algorithm; each number is what stands before the gradient of a token: + makes it likelier, − less likely. Move the pointer over a number, or go there with Tab and the arrow keys, to see what it was made of."));
controls();
draw();
