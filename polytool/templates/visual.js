// The model: graphs of nodes [name, operator, [inputs], [outputs], {attributes}, {body: graph}, flops,
// bytes moved]; inputs and outputs are indices into values [name, type, is weight]. The main graph has
// inputs and outputs of its own, which become nodes here. Text only goes through textContent.
const model = JSON.parse(document.getElementById("model").textContent);
const canvas = document.getElementById("canvas"), draw2d = canvas.getContext("2d");
const details = document.getElementById("details"), search = document.getElementById("search");
const matches = document.getElementById("matches"), grouping = document.getElementById("grouping");
const W = 172, H = 40, DX = 24, DY = 40, GROUP_FROM = 300, PORT = new Set(["Input", "Output"]);
const opened = new Set(); // groups and bodies that are open, by key
let graph = 0, items = [], edges = [], rows = [], chosen = null, near = new Set();
let zoom = 1, left = 0, top_ = 0, size = { w: 0, h: 0 };

const make = (tag, properties, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((c) => c != null));
  return node;
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const scopeOf = (node) => (node[0].includes("/") && !PORT.has(node[1]) ? node[0].split("/").filter(Boolean).slice(0, -1) : []);

for (const source of model.graphs) {
  source.nodes.unshift(...(source.inputs || []).map((v) => [model.values[v][0], "Input", [], [v], {}, {}, 0, 0]));
  source.nodes.push(...(source.outputs || []).map((v) => [model.values[v][0], "Output", [v], [], {}, {}, 0, 0]));
}

// What a node reads, with what its bodies read of the graphs around them.
const readsOf = (node) => {
  const bodies = Object.values(node[5]);
  return bodies.length ? [...new Set([...node[2], ...bodies.flatMap((g) => model.graphs[g].nodes.flatMap(readsOf))])] : node[2];
};

// What stands for each node: itself, or the outermost closed group around it.
function itemsOf(index) {
  const found = new Map();
  model.graphs[index].nodes.forEach((node, i) => {
    let key = `n${i}`, label = null;
    if (grouping.checked) {
      const parts = scopeOf(node);
      for (let depth = 1; depth <= parts.length; depth++) {
        const group = `g${index}:${parts.slice(0, depth).join("/")}`;
        if (!opened.has(group)) { key = group; label = parts.slice(0, depth).join("/"); break; }
      }
    }
    if (!found.has(key)) found.set(key, { key, label, nodes: [], inputs: new Set(), x: 0, y: 0, rank: 0 });
    found.get(key).nodes.push(i);
  });
  for (const item of found.values()) if (item.label != null && item.nodes.length === 1) item.label = null;
  return [...found.values()];
}

function layOut() {
  const source = model.graphs[graph];
  items = itemsOf(graph);
  const at = new Map(), producer = new Map();
  items.forEach((item, i) => item.nodes.forEach((n) => at.set(n, i)));
  source.nodes.forEach((node, n) => node[3].forEach((v) => producer.set(v, n)));
  const sets = items.map(() => new Set());
  items.forEach((item) => { item.leaving = new Set(); });
  items.forEach((item, i) => item.nodes.forEach((n) => readsOf(source.nodes[n]).forEach((v) => {
    const from = producer.has(v) ? at.get(producer.get(v)) : null;
    if (from != null && from !== i) { sets[i].add(from); items[from].leaving.add(v); }
  })));
  rank(sets);
  sink(sets, items.map((item) => item.nodes.some((n) => source.nodes[n][2].some((v) => v >= 0 && !producer.has(v) && !model.values[v][2]))));
  edges = [];
  sets.forEach((set, to) => set.forEach((from) => edges.push([from, to])));
  place(sets);
}

// The longest way from the inputs; edges that would close a circle between groups do not count.
function rank(sets) {
  const state = new Uint8Array(items.length);
  for (let root = 0; root < items.length; root++) {
    const stack = [[root, null]];
    while (stack.length) {
      const top = stack[stack.length - 1], i = top[0];
      if (top[1] === null) {
        if (state[i]) { stack.pop(); continue; }
        state[i] = 1; top[1] = sets[i].values();
      }
      const next = top[1].next();
      if (!next.done) { if (!state[next.value]) stack.push([next.value, null]); continue; }
      let best = 0;
      for (const from of sets[i]) if (state[from] === 2) best = Math.max(best, items[from].rank + 1);
      items[i].rank = best; state[i] = 2; stack.pop();
    }
  }
}

// What depends on weights only stands right before its first reader, not at the top.
function sink(sets, fed) {
  const order = items.map((_, i) => i).sort((a, b) => items[a].rank - items[b].rank);
  for (const i of order) for (const from of sets[i]) if (fed[from]) fed[i] = true;
  const first = items.map(() => Infinity);
  for (const i of order.reverse()) {
    if (!fed[i] && first[i] < Infinity) items[i].rank = Math.max(items[i].rank, first[i] - 1);
    for (const from of sets[i]) first[from] = Math.min(first[from], items[i].rank);
  }
}

function place(sets) {
  rows = [];
  items.forEach((item, i) => (rows[item.rank] = rows[item.rank] || []).push(i));
  rows = Array.from(rows, (row) => row || []);
  const above = sets.map((set) => [...set].filter((f) => items[f].rank < 1e9)), below = items.map(() => []);
  above.forEach((list, to) => list.forEach((from) => below[from].push(to)));
  const mean = (list) => list.reduce((sum, i) => sum + items[i].x, 0) / list.length;
  const settle = (row) => {
    row.sort((a, b) => items[a].want - items[b].want || a - b);
    let right = -Infinity, shift = 0;
    for (const i of row) { const x = Math.max(items[i].want, right + W + DX); shift += x - items[i].want; items[i].x = x; right = x; }
    shift /= row.length || 1;
    for (const i of row) items[i].x -= shift;
  };
  for (let sweep = 0; sweep < 4; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      row.forEach((i, order) => {
        const list = down ? above[i] : below[i];
        items[i].want = list.length ? mean(list) : sweep ? items[i].x : order * (W + DX);
      });
      settle(row);
    }
  }
  let low = Infinity, high = -Infinity;
  for (const item of items) { item.y = item.rank * (H + DY); low = Math.min(low, item.x); high = Math.max(high, item.x); }
  for (const item of items) item.x -= low;
  size = { w: items.length ? high - low + W : W, h: rows.length * (H + DY) };
}

const colours = new Map();
function colourOf(op) {
  if (!colours.has(op)) {
    let hash = 7;
    for (const c of op) hash = (hash * 31 + c.charCodeAt(0)) % 360;
    colours.set(op, +css("dark") ? `hsl(${hash} 32% 26%)` : `hsl(${hash} 55% 88%)`);
  }
  return colours.get(op);
}

const textOf = (item) => item.label != null ? item.label.split("/").pop()
  : model.graphs[graph].nodes[item.nodes[0]][1];
const secondOf = (item) => item.label != null ? `${item.nodes.length} nodes`
  : model.graphs[graph].nodes[item.nodes[0]][0].split("/").pop();

let pending = false;
function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; paint(); });
}

function paint() {
  const scale = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
    canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale);
  }
  draw2d.setTransform(scale, 0, 0, scale, 0, 0);
  draw2d.clearRect(0, 0, w, h);
  draw2d.setTransform(scale * zoom, 0, 0, scale * zoom, -left * zoom * scale, -top_ * zoom * scale);
  const first = top_ - H, last = top_ + h / zoom, start = left - W, end = left + w / zoom;
  const lines = (test, colour, width) => {
    draw2d.strokeStyle = colour; draw2d.lineWidth = width / Math.max(zoom, 0.2); draw2d.beginPath();
    for (const [from, to] of edges) {
      const a = items[from], b = items[to];
      if (Math.max(a.y, b.y) < first || Math.min(a.y, b.y) > last || !test(from, to)) continue;
      const x1 = a.x + W / 2, y1 = a.y + H, x2 = b.x + W / 2, y2 = b.y, bend = (y2 - y1) / 2;
      draw2d.moveTo(x1, y1); draw2d.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
    }
    draw2d.stroke();
  };
  lines(() => true, css("edge"), 1);
  if (chosen != null) lines((from, to) => from === chosen || to === chosen, css("near"), 2.2);
  const text = css("text"), soft = css("soft"), line = css("line"), groupColour = css("group");
  draw2d.textBaseline = "middle"; draw2d.textAlign = "center";
  for (let r = Math.max(0, Math.floor(first / (H + DY))); r < rows.length && r * (H + DY) <= last; r++) {
    for (const i of rows[r]) {
      const item = items[i];
      if (item.x < start || item.x > end) continue;
      const node = item.label == null ? model.graphs[graph].nodes[item.nodes[0]] : null;
      draw2d.fillStyle = node ? colourOf(node[1]) : groupColour;
      draw2d.strokeStyle = i === chosen ? css("chosen") : near.has(i) ? css("near") : line;
      draw2d.lineWidth = i === chosen ? 3 : near.has(i) ? 2 : 1;
      draw2d.beginPath(); draw2d.roundRect(item.x, item.y, W, H, node ? 5 : 14); draw2d.fill(); draw2d.stroke();
      if (node && Object.keys(node[5]).length) draw2d.strokeRect(item.x + 3, item.y + 3, W - 6, H - 6);
      if (zoom <= 0.28) continue;
      draw2d.fillStyle = text; draw2d.font = "13px system-ui, sans-serif";
      draw2d.fillText(cut(textOf(item), 22), item.x + W / 2, item.y + (zoom > 0.5 ? 13 : H / 2));
      if (zoom <= 0.5) continue;
      draw2d.fillStyle = soft; draw2d.font = "11px system-ui, sans-serif";
      draw2d.fillText(cut(secondOf(item), 28), item.x + W / 2, item.y + 29);
      if (item.leaving.size === 1) { // the type of what leaves, beside its line
        draw2d.textAlign = "left";
        draw2d.fillText(cut(model.values[[...item.leaving][0]][1], 30), item.x + W / 2 + 5, item.y + H + 10);
        draw2d.textAlign = "center";
      }
    }
  }
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function fit() {
  const w = canvas.clientWidth, h = canvas.clientHeight;
  zoom = Math.max(Math.min(1, w / (size.w + 60), h / (size.h + 60)), 0.02);
  left = (size.w - w / zoom) / 2; top_ = (size.h - h / zoom) / 2;
  draw();
}

// The whole graph where it can be read so, else its beginning.
function begin() {
  fit();
  if (zoom >= 0.5 || !items.length) return;
  const first = rows.find((row) => row.length), middle = first.reduce((sum, i) => sum + items[i].x, 0) / first.length;
  zoom = 0.9; left = middle + W / 2 - canvas.clientWidth / zoom / 2; top_ = -24;
  draw();
}

function refresh(keep) {
  const before = keep ? items.find((item) => item.key === keep) : null;
  const offset = before ? [before.x - left, before.y - top_] : null, node = before ? before.nodes[0] : null;
  chosen = null; near = new Set();
  layOut(); showPath();
  if (offset) {
    const now = items.find((item) => item.nodes.includes(node));
    left = now.x - offset[0]; top_ = now.y - offset[1]; draw();
  } else begin();
  describe();
}

function showPath() {
  const path = document.getElementById("path");
  path.replaceChildren();
  if (model.graphs[graph].path) {
    path.append("inside of ", make("b", { textContent: model.graphs[graph].path }), " ",
      make("button", { type: "button", textContent: "Back", onclick: () => { graph = model.graphs[graph].parent; refresh(); } }));
  }
}

function choose(i) {
  chosen = i; near = new Set();
  if (i != null) for (const [from, to] of edges) { if (from === i) near.add(to); if (to === i) near.add(from); }
  const node = i != null && items[i].label == null ? model.graphs[graph].nodes[items[i].nodes[0]] : null;
  history.replaceState(null, "", node ? `#${encodeURIComponent(node[0])}` : location.pathname);
  describe(); draw();
}

function open(i) {
  const item = items[i];
  if (item.label != null) { opened.add(`g${graph}:${item.label}`); refresh(item.key); return; }
  const bodies = Object.values(model.graphs[graph].nodes[item.nodes[0]][5]);
  if (bodies.length) { graph = bodies[0]; refresh(); }
}

function tensorRow(v, list) {
  const [name, type, weight] = model.values[v];
  const jump = make("button", { className: "link", type: "button", textContent: name, onclick: () => goToTensor(v) });
  list.append(make("dt", {}, weight ? "weight" : "tensor"), make("dd", {}, jump, make("br"), type));
}

// What the graph consists of: shown while nothing is selected.
function summarise() {
  const counts = new Map(), nodes = model.graphs[graph].nodes.filter((node) => !PORT.has(node[1]));
  for (const node of nodes) counts.set(node[1], (counts.get(node[1]) || 0) + 1);
  details.append(make("p", { className: "soft",
    textContent: "Click a node. Drag moves, the wheel zooms, a double click opens groups and bodies." }));
  for (const [title, list] of [["Inputs", model.graphs[graph].inputs], ["Outputs", model.graphs[graph].outputs]]) {
    const rows = make("dl");
    for (const v of list || []) tensorRow(v, rows);
    if (rows.children.length) details.append(make("h3", { textContent: title }), rows);
  }
  const rows = make("dl");
  for (const [op, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const list = () => { search.value = op; find(); search.focus(); };
    rows.append(make("dt", {}, make("button", { className: "link", type: "button", textContent: op, onclick: list })),
      make("dd", {}, String(count)));
  }
  details.append(make("h3", { textContent: `${nodes.length.toLocaleString("en")} nodes` }), rows);
}

function describe() {
  details.replaceChildren();
  if (chosen == null) { summarise(); return; }
  const item = items[chosen];
  if (item.label != null) {
    const counts = new Map();
    for (const n of item.nodes) { const op = model.graphs[graph].nodes[n][1]; counts.set(op, (counts.get(op) || 0) + 1); }
    const list = make("dl");
    for (const [op, count] of [...counts].sort((a, b) => b[1] - a[1])) list.append(make("dt", {}, op), make("dd", {}, String(count)));
    details.append(make("h2", { textContent: item.label }), make("p", { className: "soft", textContent: `${item.nodes.length} nodes` }),
      make("button", { type: "button", textContent: "Open", onclick: () => open(items.indexOf(item)) }), list);
    return;
  }
  const [name, op, inputs, outputs, attributes, bodies, flops, moved] = model.graphs[graph].nodes[item.nodes[0]];
  details.append(make("h2", { textContent: op }), make("p", { textContent: name }));
  const costs = [[flops, "FLOP"], [moved, "bytes moved"]].filter((cost) => cost[0]);
  if (costs.length) {
    const said = costs.map(([count, unit]) => `${count.toLocaleString("en")} ${unit}`).join(", ");
    details.append(make("p", { className: "soft", textContent: said }));
  }
  for (const [body, index] of Object.entries(bodies)) {
    details.append(make("p", {}, make("button", { type: "button", textContent: `Open ${body}`, onclick: () => { graph = index; refresh(); } })));
  }
  const part = (title, fill) => { const list = make("dl"); fill(list); if (list.children.length) details.append(make("h3", { textContent: title }), list); };
  part("Attributes", (list) => Object.entries(attributes).forEach(([k, v]) => list.append(make("dt", {}, k), make("dd", {}, v))));
  part("Inputs", (list) => inputs.forEach((v) => v >= 0 && tensorRow(v, list)));
  part("Outputs", (list) => outputs.forEach((v) => tensorRow(v, list)));
}

// Show a node: enter its graph, open the groups around it, select it.
function goTo(index, n) {
  if (index !== graph) { graph = index; refresh(); }
  const parts = scopeOf(model.graphs[index].nodes[n]);
  if (grouping.checked && !items.some((item) => item.label == null && item.nodes[0] === n)) {
    for (let depth = 1; depth <= parts.length; depth++) opened.add(`g${index}:${parts.slice(0, depth).join("/")}`);
    refresh();
  }
  const i = items.findIndex((item) => item.nodes.includes(n));
  zoom = Math.max(zoom, 0.8);
  left = items[i].x + W / 2 - canvas.clientWidth / zoom / 2; top_ = items[i].y + H / 2 - canvas.clientHeight / zoom / 2;
  choose(i);
}

function goToTensor(v) {
  const here = model.graphs[graph].nodes, current = chosen == null ? -1 : items[chosen].nodes[0];
  let n = here.findIndex((node) => node[3].includes(v));
  if (n < 0 || n === current) n = here.findIndex((node, i) => i !== current && node[2].includes(v));
  if (n >= 0) goTo(graph, n);
}

function find() {
  const wanted = search.value.trim().toLowerCase();
  matches.replaceChildren(); matches.hidden = !wanted;
  if (!wanted) return;
  let count = 0;
  outer: for (let g = 0; g < model.graphs.length; g++) {
    const nodes = model.graphs[g].nodes;
    for (let n = 0; n < nodes.length; n++) {
      const node = nodes[n], tensor = node[3].find((v) => model.values[v][0].toLowerCase().includes(wanted));
      if (![node[0], node[1]].some((text) => text.toLowerCase().includes(wanted)) && tensor == null) continue;
      const where = model.graphs[g].path ? ` in ${model.graphs[g].path}` : "";
      const also = tensor != null && !node[0].toLowerCase().includes(wanted) ? ` → ${model.values[tensor][0]}` : "";
      matches.append(make("button", { type: "button", textContent: `${node[1]}  ${node[0]}${also}${where}`,
        onclick: () => { matches.hidden = true; goTo(g, n); } }));
      if (++count === 100) break outer;
    }
  }
  if (!count) matches.append(make("p", { className: "soft", textContent: "Nothing is called that." }));
}

const hit = (event) => {
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / zoom + left, y = (event.clientY - box.top) / zoom + top_;
  const row = rows[Math.floor(y / (H + DY))] || [];
  const i = row.find((k) => x >= items[k].x && x <= items[k].x + W && y <= items[k].y + H);
  return i == null ? null : i;
};
let drag = null;
canvas.addEventListener("pointerdown", (e) => { drag = { x: e.clientX, y: e.clientY, moved: false }; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointermove", (e) => {
  if (!drag) return;
  if (Math.hypot(e.clientX - drag.x, e.clientY - drag.y) > 3) drag.moved = true;
  if (!drag.moved) return;
  left -= (e.clientX - drag.x) / zoom; top_ -= (e.clientY - drag.y) / zoom; drag.x = e.clientX; drag.y = e.clientY; draw();
});
canvas.addEventListener("pointerup", (e) => { if (drag && !drag.moved) choose(hit(e)); drag = null; });
canvas.addEventListener("dblclick", (e) => { const i = hit(e); if (i != null) open(i); });
function zoomBy(factor, x, y) {
  const next = Math.min(Math.max(zoom * factor, 0.02), 3);
  left += x / zoom - x / next; top_ += y / zoom - y / next; zoom = next; draw();
}
canvas.addEventListener("wheel", (e) => {
  e.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoomBy(Math.exp(-e.deltaY / 500), e.clientX - box.left, e.clientY - box.top);
}, { passive: false });
canvas.addEventListener("keydown", (e) => {
  const step = 80 / zoom, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[e.key]) { left += moves[e.key][0]; top_ += moves[e.key][1]; e.preventDefault(); draw(); }
  else if (e.key === "+" || e.key === "-") zoomBy(e.key === "+" ? 1.25 : 0.8, canvas.clientWidth / 2, canvas.clientHeight / 2);
  else if (e.key === "Enter" && chosen != null) open(chosen);
});
search.addEventListener("input", find);
search.addEventListener("keydown", (e) => { if (e.key === "Escape") matches.hidden = true; if (e.key === "Enter" && matches.querySelector("button")) matches.querySelector("button").click(); });
grouping.addEventListener("change", () => refresh());
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("collapse").addEventListener("click", () => { opened.clear(); refresh(); });
new ResizeObserver(draw).observe(canvas);

const named = model.graphs[0].nodes.filter((node) => scopeOf(node).length).length;
grouping.checked = model.graphs[0].nodes.length > GROUP_FROM && named > model.graphs[0].nodes.length / 2;
for (let again = grouping.checked; again;) { // a group that holds nearly everything shows nothing
  const large = itemsOf(0).find((item) => item.label != null && item.nodes.length > model.graphs[0].nodes.length / 2);
  if (large) opened.add(`g0:${large.label}`); else again = false;
}
refresh();
if (location.hash) { // a link to a node, by its name
  const wanted = decodeURIComponent(location.hash.slice(1));
  model.graphs.some((source, g) => {
    const n = source.nodes.findIndex((node) => node[0] === wanted);
    if (n >= 0) goTo(g, n);
    return n >= 0;
  });
}
document.body.dataset.ready = String(items.length);
