// `run`: one table a pair of runs, and what the errors of the worst outputs look like.
function runReport() {
  if (!facts.pairs.length) alone();
  facts.pairs.forEach((pair, index) => {
    const rows = Object.entries(pair.outputs).map(([name, output], i) => ({ name, position: i, ...output }));
    section(`${pair.a} against ${pair.b}`, pair.notes.join("; "), make("p", {}, verdictOf(pair.verdict), ` ${counted(rows.length, "output")}`));
    byDepth(rows);
    outputTable(rows);
    for (const [name, picture] of Object.entries((data.pictures || [])[index] || {})) drawOutput(pair, name, picture);
  });
  timing();
  if (facts.notes && facts.notes.length) section("Notes", "", make("div", { class: "panel" }, make("pre", {}, facts.notes.join("\n"))));
  settings(facts.settings);
}

function alone() {
  const broken = facts.not_finite || [];
  section("One run alone", "There is nothing to compare it with.",
    make("p", {}, broken.length ? `NaN or Inf in ${broken.join(", ")}` : "No output holds NaN or Inf."));
}

function byDepth(rows) {
  if (rows.length < 3) return;
  const place = section("Error by depth", "Relative L2 of each output, in the order in which the reference makes them.");
  plot(place, {
    points: rows.map((row) => ({ x: row.position, row, error: row.rel_l2, lost: row.one_sided > 0,
      verdict: { agree: "expected", differ: "broken", not_compared: "suspicious" }[row.verdict] })),
    series: [{ name: "agrees", key: "error", kind: "dots", color: "expected", mark: "●", lost: true },
      { name: "differs", key: "none", kind: "line", color: "broken", mark: "✕" },
      { name: "not compared", key: "none", kind: "line", color: "suspicious", mark: "▲" }],
    label: "relative L2", xlabel: "output", tell: (p) => `${p.row.name}\n${p.row.verdict}, relative L2 ${number(p.row.rel_l2)}, max abs ${number(p.row.max_abs)}`,
  });
}

function tolerance(given) {
  return Object.entries(given).filter(([key, value]) => key !== "source" && value !== "default").map(([key, value]) => `${key} ${typeof value === "number" ? number(value) : value}`).join(", ");
}

function outputTable(rows) {
  const value = (key, title, hint, width = "88px") => ({ title, hint, width, number: true, empty: null, value: (r) => r[key] });
  const place = section("Outputs", "The worst first. Click a heading to sort.");
  const rank = { differ: 0, not_compared: 1, agree: 2 };
  rows = [...rows].sort((a, b) => rank[a.verdict] - rank[b.verdict] || (b.excess ?? Infinity) - (a.excess ?? Infinity) || 0);
  const samples = rows.some((r) => r.iterations.length > 1);
  table(place, {
    rows, text: (r) => [r.name, r.verdict, r.reason, ...r.dtypes].join(" "),
    filters: [["all verdicts", null], ...["differ", "not_compared", "agree"].map((w) => [w.replace("_", " "), (r) => r.verdict === w])],
    columns: [
      { title: "verdict", width: "126px", value: (r) => rank[r.verdict], show: (r) => verdictOf(r.verdict) },
      { title: "output", width: "minmax(140px, 3fr)", value: (r) => r.name + r.path },
      { title: "type", width: "minmax(120px, 2fr)", value: (r) => (r.dtypes[0] === r.dtypes[1] ? r.dtypes[1] : r.dtypes.join(" / ")) + (r.shapes[1] ? `[${r.shapes[1].join(", ")}]` : "") },
      { title: "excess", hint: "error / tolerance; above 1 it differs", width: "80px", number: true, empty: Infinity, value: (r) => r.excess },
      value("max_abs", "max abs"), value("max_scaled", "of scale", "largest error relative to the largest value of the reference"),
      value("rel_l2", "rel L2"), value("snr", "SNR dB"), value("mismatched", "not equal"),
      ...(samples ? [{ title: "worst at", width: "80px", number: true, value: (r) => r.iteration, show: (r) => `#${r.iteration}` }] : []),
      { title: "tolerance", width: "minmax(120px, 2fr)", value: (r) => tolerance(r.tolerance) },
      { title: "why", width: "minmax(120px, 2fr)", value: (r) => r.reason || r.tolerance.source || "" },
    ],
  });
}

function drawOutput(pair, name, picture) {
  const output = pair.outputs[name], where = output.worst_index;
  const told = where ? `Largest error at [${where.join(", ")}]: ${output.worst_values[0]} in ${pair.a}, ${output.worst_values[1]} in ${pair.b}. ` : "";
  const sample = output.iterations.length > 1 ? `Iteration ${output.iteration}. ` : "";
  main.append(make("div", { class: "panel output" }, make("h3", {}, verdictOf(output.verdict), ` ${name}${output.path}`),
    equalValues(picture, `${sample}${told}`), make("div", { class: "two" }, heatMap(picture), histogram(picture))));
}

function equalValues(picture, before) {
  const lost = picture.one_sided ? `; not finite on one side only: ${picture.one_sided}` : "";
  return make("p", { class: "hint" }, `${before}Equal values: ${picture.equal}${lost}.`);
}

function heatMap(picture) {
  const cells = picture.map, rows = cells.length, columns = cells[0].length, [low, high] = extent(cells.flat());
  const canvas = make("canvas", { role: "img", "aria-label": "heat map of the absolute error" });
  const height = Math.min(Math.max(rows * 12, 28), 260), [all, last] = picture.view;
  const span = (i, parts, size) => [Math.floor(i * size / parts), Math.max(Math.floor((i + 1) * size / parts) - 1, Math.floor(i * size / parts))];
  const range = ([from, to]) => (from === to ? `${from}` : `${from}–${to}`);
  const leading = picture.shape.slice(0, -1);
  const index = (flat) => { // of a row, in the leading dimensions
    const at = [];
    for (let d = leading.length - 1; d >= 0; d--) { at.unshift(flat % leading[d]); flat = Math.floor(flat / leading[d]); }
    return `[${at.join(", ")}]`;
  };
  const paint = () => {
    const [context, width] = fit(canvas, height), w = width / columns, h = height / rows;
    cells.forEach((line, y) => line.forEach((value, x) => {
      const box = [Math.floor(x * w), Math.floor(y * h), Math.ceil(w), Math.ceil(h)];
      context.fillStyle = value == null ? color("broken") : value === 0 ? color("grid") : rgb(heat(logShare(value, low, high)));
      context.fillRect(...box);
      if (value == null) cross(context, ...box);
    }));
  };
  const cross = (context, x, y, w, h) => { // told by more than its colour
    context.strokeStyle = color("back");
    context.beginPath();
    context.moveTo(x, y); context.lineTo(x + w, y + h);
    context.moveTo(x + w, y); context.lineTo(x, y + h);
    context.stroke();
  };
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
    const y = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
    const value = cells[y]?.[x], down = span(y, rows, all), along = span(x, columns, last);
    const rowsTold = leading.length ? (down[0] === down[1] ? index(down[0]) : `${index(down[0])} to ${index(down[1])}`) : "";
    showTip(event, `${value === undefined ? "" : value == null ? "not finite on one side" : `largest |error| ${number(value)}`}\n${rowsTold ? `rows ${rowsTold}\n` : ""}last axis ${range(along)}`);
  });
  canvas.addEventListener("mouseleave", hideTip);
  painted(paint);
  return make("div", {}, make("p", { class: "hint" }, `Largest |error| by place: leading dimensions down (${all}), last axis across (${last}).`),
    make("div", { class: "plot" }, canvas), ramp(low, high, "|error|"),
    make("p", { class: "hint" }, picture.one_sided ? "Grey: equal. Crossed out: not finite on one side only." : "Grey: equal."));
}

function histogram(picture) {
  const { from, counts, step } = picture.histogram, height = 220;
  if (!counts.length) return make("p", { class: "hint" }, "No finite error to count.");
  const canvas = make("canvas", { role: "img", "aria-label": "histogram of the absolute error" }), most = Math.max(...counts);
  const size = (count) => (count ? Math.log10(count + 1) / Math.log10(most + 1) : 0);
  let width = 1;
  const paint = () => {
    let context;
    [context, width] = fit(canvas, height);
    const w = width / counts.length, h = height - 34;
    context.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    counts.forEach((count, i) => {
      context.fillStyle = color("expected");
      const top = 14 + (1 - size(count)) * (h - 14);
      context.fillRect(i * w + 1, top, Math.max(w - 2, 1), h - top);
      context.fillStyle = color("soft");
      context.textAlign = "center";
      if (w > 34 && count) context.fillText(String(count), i * w + w / 2, top - 3);
      const every = Math.max(1, Math.ceil(6 / (counts.length * w / 60 / Math.max(counts.length / 6, 1))));
      if (Number.isInteger(from[i]) && (w > 30 || from[i] % every === 0)) { context.textAlign = "left"; context.fillText(`1e${from[i]}`, i * w, h + 13); }
    });
    context.fillStyle = color("soft");
    context.textAlign = "center";
    context.fillText("|error|, bars on a log scale", width / 2, height - 4);
  };
  canvas.addEventListener("mousemove", (event) => {
    const i = Math.floor((event.clientX - canvas.getBoundingClientRect().left) / width * counts.length);
    if (counts[i] !== undefined) showTip(event, `${counts[i]} values with ${number(10 ** from[i])} ≤ |error| < ${number(10 ** (from[i] + step))}`);
  });
  canvas.addEventListener("mouseleave", hideTip);
  painted(paint);
  return make("div", {}, make("p", { class: "hint" }, "How many values have which |error|; equal values are not counted."), make("div", { class: "plot" }, canvas));
}

function timing() {
  const times = Object.entries(facts.seconds || {}).filter(([, list]) => list.length);
  if (!times.length) return;
  const list = make("dl", {});
  for (const [name, seconds] of times) {
    const sorted = [...seconds].sort((a, b) => a - b), half = (sorted.length - 1) / 2;
    const median = (sorted[Math.floor(half)] + sorted[Math.ceil(half)]) / 2;
    list.append(make("dt", {}, name), make("dd", {}, `${number(1000 * median)} ms, median of ${seconds.length}`));
  }
  section("Time of an inference", "", make("div", { class: "panel" }, list));
}
