// How coefficients lie: a column a time, a row a bin of size and sign, darker where more tokens are.

const CELL = 9, MARKED = 13;

function coefficientPart(data, state) {
  const figures = [], without = [];
  for (const [run, stage, tint] of visible(data, state)) {
    const label = data.runs.length > 1 ? `${run.label} · ${stage.name}` : stage.name;
    if (!stage.coefficients.length && stage.steps !== null) without.push(label);
    for (const one of stage.coefficients) figures.push(histogram(one, label, tint, data.bins));
  }
  return [h("p", { class: "note" }, "What stands before the gradient of each token, by size and sign. A column holds the tokens of some steps; the stronger its colour, the larger a bin's share of them. In the middle row are exact zeros: tokens that were not pushed."),
    figures.length > 0 && h("div", { class: "grid" }, figures),
    without.length > 0 && h("p", { class: "empty" }, `No coefficients were counted in ${without.join(", ")}.`),
    !figures.length && !without.length && h("p", { class: "empty" }, "No stage has counted coefficients yet.")];
}

function histogram(one, label, tint, bins) {
  const zero = (bins.length - 1) / 2, left = 52, top = 4, down = bins.length * CELL, wide = 360, each = wide / one.first.length;
  const svg = s("svg", { viewBox: `0 0 ${left + wide + 8} ${top + down + 34}`, role: "img",
    "aria-label": `${one.name} of ${label}: shares of ${bins.length} bins in ${plural(one.first.length, "column")}` });
  const y = (bin) => top + (bins.length - 1 - bin) * CELL;
  svg.append(s("rect", { class: "bins", x: left, y: top, width: wide, height: down }));
  for (const [bin, text] of [[zero, "0"], [zero + 1 + MARKED, "≥ 1000"], [zero - 1 - MARKED, "≤ −1000"],
    ...[1, 7].flatMap((k) => [[zero + 1 + k, k === 1 ? "0.001" : "1"], [zero - 1 - k, k === 1 ? "−0.001" : "−1"]])])
    svg.append(s("text", { x: left - 5, y: y(bin) + CELL - 0.5, "text-anchor": "end" }, text));
  one.shares.forEach((pairs, column) => {
    const steps = one.first[column] === one.last[column] ? `step ${shown(one.first[column])}` : `steps ${shown(one.first[column])} to ${shown(one.last[column])}`;
    for (let i = 0; i < pairs.length; i += 2) svg.append(s("rect", { class: "bin", colour: tint, x: (left + column * each).toFixed(2), y: y(pairs[i]),
      width: Math.max(each - 0.4, 0.5).toFixed(2), height: CELL - 0.6, "fill-opacity": (0.12 + 0.88 * Math.sqrt(pairs[i + 1] / 1000)).toFixed(2) },
      s("title", {}, `${steps}: ${bins[pairs[i]]}, ${(pairs[i + 1] / 10).toFixed(1)} % of ${plural(one.numbers[column], "token")}`)));
  });
  const last = one.last[one.last.length - 1];
  svg.append(s("text", { x: left, y: top + down + 15 }, shown(one.first[0])),
    last !== one.first[0] && s("text", { x: left + wide, y: top + down + 15, "text-anchor": "end" }, shown(last)),
    s("text", { x: left + wide / 2, y: top + down + 30, "text-anchor": "middle" }, "steps"));
  return h("figure", { "data-bins": one.name }, h("figcaption", {}, h("b", {}, one.name), h("span", { class: "unit" }, label)), svg);
}
