"use strict";
// Elements made of text, numbers as a person reads them, and what stands under the pointer.

/** An HTML element. Whatever is no element becomes a text node: nothing that is shown is ever read as HTML. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function put(id, ...children) {
  document.getElementById(id).replaceChildren(...h("div", {}, ...children).childNodes);
}

/** A number with its sign in front, never told by colour alone. */
function signed(value, digits = 2) {
  if (value === null || value === undefined) return "?";
  if (value === 0) return "0";
  return (value > 0 ? "+" : "−") + plain(Math.abs(value), digits);
}

function plain(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(Math.max(0, digits - 1)).replace("e+", "e").replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** A token as it can be told from others: white space is shown by signs. */
function visible(token) {
  return token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/^ +| +$/g, (run) => "·".repeat(run.length)) || "∅";
}

/** Lines of [name, value] beside an element, inside the window. */
function showTip(anchor, title, lines) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(h("div", { class: "title" }, h("strong", {}, title)), ...lines.map(([name, value]) =>
    h("div", {}, h("span", { class: "soft" }, name), h("b", {}, value))));
  tip.hidden = false;
  const box = anchor.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - width - 8))}px`;
  tip.style.top = `${box.bottom + 6 + height > innerHeight ? Math.max(4, box.top - height - 6) : box.bottom + 6}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

function table(heads, rows, classes) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { class: classes[i], scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: classes[i] }, cell)))))));
}
