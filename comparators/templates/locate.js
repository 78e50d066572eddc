// `debug locate`: errors and ranges by depth, the ranking, and what is around one layer.
const TINY = "…";

function nameOf(row) {
  const names = row.nodes.length ? row.nodes : row.tensors;
  return names.length ? names.join(", ") : row.layer;
}

// No finite own error: its excess is beyond all, as in the ranking of the command.
function times(row) {
  return row.excess == null ? "inf ×" : `${number(row.excess)} ×`;
}

function summary(row) {
  return `${MARKS[row.verdict]} ${row.verdict}, ${times(row)} the budget\n${nameOf(row)}\nown ${number(row.own_error)}, `
    + `inherited ${number(row.inherited_error)}, total ${number(row.total_error)}, budget ${number(row.budget)}\n`
    + `${row.dtype}, position ${row.position}\n${row.reason}`;
}

function locateReport() {
  const ranking = facts.ranking;
  const byPosition = new Map(ranking.map((row) => [row.position, row]));
  const inOrder = [...ranking].sort((a, b) => a.position - b.position);
  let current = facts.first_broken ? byPosition.get(facts.first_broken.position) : ranking[0];
  const choose = (row) => { current = row; refill(); neighbourhood(); repaint(); };
  let refill = () => {};

  cards();
  errors();
  const around = section("Around the layer", "Click a layer here, in a plot or in the ranking to look at it. "
    + "Solid lines: data flow; dashed: only the order of execution is known.");
  ranks();
  ranges();
  outputs();
  if (facts.fix) settingsLike("Fix", "The smallest set of layers in higher precision that was found.", facts.fix);
  if (facts.not_checked.length) listing("Not checked", facts.not_checked);
  settings(facts.settings);
  neighbourhood();

  function cards() {
    const count = (word) => ranking.filter((row) => row.verdict === word).length;
    const card = (value, what) => make("div", {}, make("b", {}, value), make("span", {}, what));
    const worst = Object.values(facts.outputs);
    main.append(make("div", { class: "cards" }, card(String(ranking.length), "layers"),
      ...["broken", "suspicious", "expected"].map((w) => card(`${MARKS[w]} ${count(w)}`, w)),
      card(number(worst.includes(null) ? null : Math.max(0, ...worst)), "largest error of an output (relative L2)"),
      card(String(facts.settings.precision ?? "–"), "precision"), card(String(facts.settings.device ?? "–"), "device")));
  }

  function errors() {
    const place = section("Error by depth", "Relative L2 of each layer. Own error: what the layer alone did; marks above the dashed line exceed what its type explains. Errors of 0 are not drawn.");
    plot(place, {
      points: inOrder.map((row) => ({ x: row.position, row, own: row.own_error, total: row.total_error, budget: row.budget,
        verdict: row.verdict, lost: row.own_error == null })),
      series: [
        { name: "total error", key: "total", kind: "line", color: "total", mark: "—" },
        { name: "budget", key: "budget", kind: "dashes", color: "limit", mark: "- -" },
        { name: "own error, expected", key: "own", kind: "dots", color: "expected", mark: "●", lost: true },
        { name: "suspicious", key: "none", kind: "none", color: "suspicious", mark: "▲" },
        { name: "broken (at the upper edge: not finite)", key: "none", kind: "none", color: "broken", mark: "✕" },
      ].filter((s) => s.kind !== "none" || ranking.some((row) => row.verdict === s.name.split(" ")[0]))
        .map((s) => (s.kind === "none" ? { ...s, kind: "line" } : s)),
      label: "relative L2", height: 300, tell: (p) => summary(p.row), pick: (p) => choose(p.row), chosen: () => current && current.position,
    });
  }

  function ranges() {
    const place = section("Range", "Largest finite magnitude of each layer, against the largest number of its type.");
    const points = inOrder.map((row) => {
      const limit = data.limits[row.dtype], bad = row.range.nan + row.range.inf > 0;
      return { x: row.position, row, absmax: row.range.absmax, limit: limit && limit.max, lost: bad,
        verdict: bad || (row.range.headroom != null && row.range.headroom < 1) ? "broken" : "expected" };
    });
    const largest = extent(points.map((p) => p.absmax))[1], beyond = new Set();
    for (const p of points) {
      if (p.limit > largest * 1e8) { beyond.add(`${p.row.dtype} ${number(p.limit)}`); p.limit = null; }
    }
    plot(place, {
      points,
      series: [
        { name: "largest value of the type", key: "limit", kind: "steps", color: "limit", mark: "—", breaks: true },
        { name: "largest magnitude", key: "absmax", kind: "dots", color: "expected", mark: "●", lost: true },
        ...(points.some((p) => p.verdict === "broken")
          ? [{ name: "overflow, NaN or Inf", key: "none", kind: "line", color: "broken", mark: "✕" }] : []),
      ],
      label: "magnitude", height: 230, chosen: () => current && current.position, pick: (p) => choose(p.row),
      tell: (p) => `${nameOf(p.row)}\n${p.row.dtype}, |x| ≤ ${number(p.row.range.absmax)}, headroom ${number(p.row.range.headroom)}\n`
        + `NaN ${p.row.range.nan}, Inf ${p.row.range.inf}, subnormal ${number(100 * p.row.range.subnormal)} %`,
    });
    if (beyond.size) place.append(make("p", { class: "hint" }, `Limits far above the plot: ${[...beyond].join(", ")}.`));
  }

  function ranks() {
    const place = section("Ranking", "The worst first. Click a heading to sort; the search looks at names of layers, nodes and tensors, types and reasons.");
    const error = (key, title, hint, empty) => ({ title, hint, number: true, width: "86px", empty, value: (r) => r[key] });
    refill = table(place, {
      rows: ranking, pick: choose, chosen: () => current,
      text: (r) => [r.layer, ...r.nodes, ...r.tensors, r.dtype, r.precision, r.verdict, r.reason].join(" "),
      filters: [["all verdicts", null], ...["broken", "suspicious", "expected"].map((w) => [w, (r) => r.verdict === w])],
      columns: [
        { title: "verdict", width: "126px", value: (r) => ({ broken: 0, suspicious: 1, expected: 2 })[r.verdict], show: (r) => verdictOf(r.verdict) },
        { title: "excess", hint: "own error / budget", number: true, width: "88px", empty: Infinity, value: (r) => r.excess, show: times },
        error("own_error", "own", "what this layer alone did", Infinity),
        error("inherited_error", "inherited", "what came with its inputs"),
        error("total_error", "total", "against the reference"),
        error("contribution", "in outputs", "change of the outputs that this layer alone causes, where measured"),
        error("position", "position", "in execution order"),
        { title: "type", width: "84px", value: (r) => r.dtype },
        { title: "nodes", width: "minmax(160px, 3fr)", value: nameOf, show: (r) => short(nameOf(r), 32) },
        { title: "why", width: "minmax(160px, 3fr)", value: (r) => r.reason },
      ],
    });
  }

  function outputs() {
    const rows = Object.entries(facts.outputs);
    const place = section("Outputs", rows.length ? "Relative L2 against the reference, worst sample." : "No output was compared.");
    if (!rows.length) return;
    table(place, { rows, text: (r) => r[0], most: 8, columns: [
      { title: "output", width: "1fr", value: (r) => r[0] },
      { title: "relative L2", width: "160px", number: true, empty: Infinity, value: (r) => r[1] },
    ] });
    for (const [name, picture] of Object.entries(data.pictures || {})) {
      main.append(make("div", { class: "panel output" }, make("h3", {}, name), equalValues(picture, ""),
        make("div", { class: "two" }, heatMap(picture), histogram(picture))));
    }
  }

  function neighbourhood() {
    if (!current) { around.append(make("p", {}, "No layer was judged.")); return; }
    const box = make("div", { class: "two" }, make("div", { class: "panel graph" }, drawn()), make("div", { class: "panel" }, details()));
    const shade = ramp(...shadeOf().range, "Shade: own error");
    around.querySelectorAll(".two, .ramped").forEach((old) => old.remove());
    around.append(box, make("div", { class: "ramped" }, shade));
    const area = box.querySelector(".graph"), own = area.querySelector("[data-current]");
    if (!own) return;
    area.scrollTop = own.getAttribute("y") - area.clientHeight / 2 + 24;
    area.scrollLeft = own.getAttribute("x") - area.clientWidth / 2 + 116;
  }

  function details() {
    const r = current, list = make("dl", {});
    const fact = (name, value) => { if (value != null && value !== "") list.append(make("dt", {}, name), make("dd", {}, value)); };
    fact("verdict", verdictOf(r.verdict));
    fact("why", r.reason);
    fact("layer", r.layer);
    fact("nodes", r.nodes.join(", "));
    fact("operators", (data.operators?.[r.position] || []).join(", "));
    fact("tensors", r.tensors.join(", "));
    fact("type", `${r.dtype}, computed in ${r.precision}`);
    fact("own error", `${number(r.own_error)}, mean ${number(r.mean_own_error)}`);
    fact("budget", `${number(r.budget)}, excess ${times(r)}`);
    fact("inherited", number(r.inherited_error));
    fact("total", number(r.total_error));
    fact("in outputs", r.contribution == null ? "not measured" : number(r.contribution));
    fact("condition", number(r.condition));
    fact("range", `|x| ≤ ${number(r.range.absmax)}, headroom ${number(r.range.headroom)}, subnormal ${number(100 * r.range.subnormal)} %, NaN ${r.range.nan}, Inf ${r.range.inf}`);
    fact("worst sample", r.iteration);
    fact("flips", r.flips ? String(r.flips) : null);
    fact("reproducer", r.reproducer);
    fact("position", String(r.position));
    return list;
  }

  function shadeOf() {
    shadeOf.known ||= { range: extent(ranking.map((row) => row.own_error)) };
    return shadeOf.known;
  }

  // Up to three steps up and down from the layer, at most 30 layers; [rows, links].
  function near() {
    const feeds = data.edges || {}, users = near.users ||= usersOf(feeds);
    const known = (list) => (list || []).filter((p) => byPosition.has(p));
    const found = new Set([current.position]);
    for (const next of [(p) => known(feeds[p]), (p) => known(users.get(p))]) {
      let border = [current.position];
      for (let hop = 0; hop < 3; hop++) {
        const further = [];
        for (const p of border) for (const q of next(p).slice(0, 6)) if (!found.has(q) && found.size < 30) { found.add(q); further.push(q); }
        border = further;
      }
    }
    const links = [];
    for (const p of found) for (const q of known(feeds[p])) if (found.has(q)) links.push([q, p, ""]);
    if (found.size === 1) {
      const at = inOrder.indexOf(current), some = inOrder.slice(Math.max(0, at - 3), at + 4);
      some.forEach((row, i) => { found.add(row.position); if (i) links.push([some[i - 1].position, row.position, "order"]); });
    }
    return [[...found].sort((a, b) => a - b).map((p) => byPosition.get(p)), links];
  }

  function usersOf(feeds) {
    const users = new Map();
    for (const [p, list] of Object.entries(feeds)) for (const q of list) { if (!users.has(q)) users.set(q, []); users.get(q).push(+p); }
    return users;
  }

  function drawn() {
    const [rows, links] = near(), level = new Map(rows.map((row) => [row.position, 0]));
    for (const row of rows) for (const [from, to] of links) if (to === row.position) level.set(to, Math.max(level.get(to), level.get(from) + 1));
    const users = new Map(rows.map((row) => [row.position, links.filter(([from]) => from === row.position).map(([, to]) => to)]));
    for (const row of [...rows].reverse()) { // as late as possible: beside what uses it
      const below = users.get(row.position).map((to) => level.get(to));
      if (below.length) level.set(row.position, Math.min(...below) - 1);
    }
    const levels = [];
    for (const row of rows) (levels[level.get(row.position)] ||= []).push(row);
    const used = levels.filter(Boolean), W = 208, H = 44, GX = 22, GY = 30;
    const width = Math.max(...used.map((l) => l.length)) * (W + GX) + GX, height = used.length * (H + GY) + GY;
    const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "layers around the chosen one" });
    const place = new Map();
    used.forEach((list, y) => list.forEach((row, x) => place.set(row.position,
      [(width - list.length * (W + GX) + GX) / 2 + x * (W + GX), GY / 2 + y * (H + GY), y])));
    for (const [from, to, kind] of links) {
      const [ax, ay, al] = place.get(from), [bx, by, bl] = place.get(to);
      const x1 = ax + W / 2, y1 = ay + H, x2 = bx + W / 2, y2 = by;
      const side = bl - al > 1 ? (x1 + x2 < width ? -1 : 1) * (W / 2 + 14) : 0; // around what lies between
      node.append(svg("path", { class: kind, d: side
        ? `M${x1},${y1} C${x1 + side},${y1 + 20} ${x1 + side},${y1 + 20} ${x1 + side},${(y1 + y2) / 2} S${x2 + side / 2},${y2 - 20} ${x2},${y2}`
        : `M${x1},${y1} C${x1},${y1 + 16} ${x2},${y2 - 16} ${x2},${y2}` }));
    }
    for (const row of rows) node.append(...layer(row, place.get(row.position), W, H));
    return node;
  }

  function layer(row, [x, y], W, H) {
    const bad = row.own_error == null, share = row.own_error > 0 ? logShare(row.own_error, ...shadeOf().range) : 0;
    const fill = bad ? [176, 60, 0] : heat(share), ink = inkOn(fill), own = row === current;
    const rect = svg("rect", { x, y, width: W, height: H, rx: 6, fill: rgb(fill), "stroke-width": own ? 4 : row.verdict === "expected" ? 1 : 3,
      stroke: own ? "var(--text)" : `var(--${row.verdict === "expected" ? "line" : row.verdict})` });
    if (own) rect.setAttribute("data-current", "");
    rect.addEventListener("click", () => { hideTip(); choose(row); });
    rect.addEventListener("mousemove", (event) => showTip(event, summary(row)));
    rect.addEventListener("mouseleave", hideTip);
    const name = row.nodes.length ? row.nodes[row.nodes.length - 1] + (row.nodes.length > 1 ? ` (+${row.nodes.length - 1})` : "") : row.tensors[0] || row.layer;
    const operators = data.operators?.[row.position] || [];
    return [rect, svg("text", { x: x + 8, y: y + 17, fill: ink, "font-weight": 600 }, short(name, 26)),
      svg("text", { x: x + 8, y: y + 34, fill: ink }, `${MARKS[row.verdict]} ${bad ? "not finite" : number(row.own_error)}  ${short(operators.join(" "), 20)}`)];
  }

  function short(text, most) {
    return text.length <= most ? text : TINY + text.slice(text.length - most + 1);
  }
}

function settingsLike(title, hint, value) {
  section(title, hint, make("div", { class: "panel" }, make("pre", {}, JSON.stringify(value, null, 2))));
}

function listing(title, texts) {
  section(title, "", make("div", { class: "panel" }, make("pre", {}, texts.join("\n"))));
}
