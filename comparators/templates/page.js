// The facts, and what every part of the page is made with. Text only ever goes through textContent.
const data = JSON.parse(document.getElementById("facts").textContent);
const facts = data.facts;
const main = document.getElementById("main");
const MARKS = { broken: "✕", race: "✕", differ: "✕", suspicious: "▲", not_compared: "▲", expected: "●", agree: "●" };
const CIVIDIS = [[0, 32, 76], [0, 49, 111], [57, 72, 107], [87, 93, 109], [112, 113, 115], [138, 134, 121],
  [165, 156, 116], [196, 181, 108], [227, 207, 92], [255, 233, 69]];

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null && c !== ""));
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS(document.getElementById("namespace").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

function section(title, hint, ...children) {
  const node = make("section", {}, make("h2", {}, title), hint ? make("p", { class: "hint" }, hint) : null, ...children);
  main.append(node);
  return node;
}

function number(value, digits = 2) {
  if (value == null) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 0.01 && size < 1e4 ? String(+value.toPrecision(digits + 1)) : value.toExponential(digits - 1);
}

function counted(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

function verdictOf(word) {
  return make("span", { class: `verdict ${word}` }, `${MARKS[word] || ""} ${word.replace("_", " ")}`);
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return CIVIDIS[low].map((c, i) => Math.round(c + (CIVIDIS[low + 1][i] - c) * (at - low)));
}

function rgb(parts) {
  return `rgb(${parts.join(",")})`;
}

function inkOn([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b > 128 ? "#000" : "#fff";
}

function ramp(low, high, what) {
  const stops = CIVIDIS.map((c) => rgb(c)).join(",");
  return make("p", { class: "hint" }, `${what}: ${number(low)} `,
    make("span", { class: "ramp", style: `background: linear-gradient(90deg, ${stops})` }), ` ${number(high)} (log scale)`);
}

function logShare(value, low, high) {
  return high > low ? (Math.log10(value) - Math.log10(low)) / (Math.log10(high) - Math.log10(low)) : 1;
}

function extent(values) {
  let low = Infinity, high = 0;
  for (const v of values) if (v != null && v > 0) { if (v < low) low = v; if (v > high) high = v; }
  return high > 0 ? [low, high] : [1e-9, 1];
}

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}
function hideTip() { tip.hidden = true; }

const painters = [];
function painted(paint) {
  painters.push(paint);
  requestAnimationFrame(paint);
}
function repaint() { painters.forEach((paint) => paint()); }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
let resizing = 0;
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(repaint); });

// A canvas of CSS size (parent's width) x height, sharp on every screen; its context is in CSS pixels.
function fit(canvas, height) {
  const width = Math.max(canvas.parentElement.clientWidth, 50), scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}

function settings(value) {
  const text = JSON.stringify(value, null, 2);
  section("Settings", "Everything that changes numbers.", make("div", { class: "panel" }, make("pre", {}, text)));
}
