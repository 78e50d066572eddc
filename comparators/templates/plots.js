// Plots over the execution order with a logarithmic axis, drawn on a canvas.
const LEFT = 62, RIGHT = 12, TOP = 12, BOTTOM = 34;

// points: [{x, y, verdict}], y null where there is no number; series are drawn in order:
// {name, key, kind: "dots"|"line"|"dashes"|"steps", color, mark}. Each pixel column of a line keeps its
// extremes, so that no peak is lost however many points there are.
function plot(place, { points, series, height = 250, label, xlabel = "position in execution order", low, high, tell, pick, chosen }) {
  const canvas = make("canvas", { tabindex: pick ? 0 : null, role: "img", "aria-label": `${label} by ${xlabel}` });
  const legend = make("div", { class: "legend" });
  for (const s of series) legend.append(make("span", {}, make("i", { style: `color: var(--${s.color})` }, s.mark), s.name));
  place.append(make("div", { class: "plot" }, canvas), legend);
  const firstX = points.length ? points[0].x : 0, lastX = points.length ? points[points.length - 1].x : 1;
  let [bottom, top] = extent(points.flatMap((p) => series.map((s) => p[s.key])));
  bottom = 10 ** Math.floor(Math.log10(low ? Math.min(low, bottom) : bottom) - 0.05);
  top = 10 ** Math.ceil(Math.log10(high ? Math.max(high, top) : top) + 0.05);
  let xOf, yOf;

  function paint() {
    const [context, width] = fit(canvas, height);
    const w = width - LEFT - RIGHT, h = height - TOP - BOTTOM;
    xOf = (x) => LEFT + (lastX > firstX ? (x - firstX) / (lastX - firstX) : 0.5) * w;
    yOf = (y) => TOP + (1 - logShare(y, bottom, top)) * h;
    axes(context, w, h);
    context.save();
    context.beginPath();
    context.rect(LEFT - 6, TOP - 8, w + 12, h + 16);
    context.clip();
    for (const s of series) (s.kind === "dots" ? dots : line)(context, s);
    const at = chosen && chosen();
    if (at != null) {
      context.strokeStyle = color("text");
      context.setLineDash([2, 3]);
      context.beginPath();
      context.moveTo(xOf(at), TOP);
      context.lineTo(xOf(at), TOP + h);
      context.stroke();
    }
    context.restore();
  }

  function axes(context, w, h) {
    context.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    context.strokeStyle = color("grid");
    context.fillStyle = color("soft");
    context.lineWidth = 1;
    const first = Math.round(Math.log10(bottom)), last = Math.round(Math.log10(top));
    const step = Math.max(1, Math.ceil((last - first) / 8));
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let e = first; e <= last; e += step) {
      const y = Math.round(yOf(10 ** e)) + 0.5;
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(LEFT + w, y);
      context.stroke();
      context.fillText(`1e${e}`, LEFT - 6, y);
    }
    context.textBaseline = "top";
    const parts = Math.min(lastX - firstX, Math.max(2, Math.floor(w / 120)));
    for (let i = 0; i <= parts; i++) {
      const x = firstX + Math.round(parts ? (i / parts) * (lastX - firstX) : 0);
      context.textAlign = i === 0 ? "left" : i === parts ? "right" : "center";
      context.fillText(String(x), xOf(x), TOP + h + 5);
    }
    context.textAlign = "center";
    context.fillText(xlabel, LEFT + w / 2, TOP + h + 19);
    context.save();
    context.translate(12, TOP + h / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = "middle";
    context.fillText(label, 0, 0);
    context.restore();
  }

  function line(context, s) {
    context.strokeStyle = color(s.color);
    context.lineWidth = s.kind === "line" ? 1.3 : 1.6;
    context.lineCap = "round";
    context.setLineDash(s.kind === "dashes" ? [6, 4] : []);
    context.beginPath();
    let pen = false, column = null, least = 0, most = 0, before = null;
    const flush = () => {
      if (column == null) return;
      if (!pen) context.moveTo(column - 2, most); // so that a single point is seen
      context.lineTo(column, most);
      if (least !== most) context.lineTo(column, least);
      pen = true;
    };
    for (const p of points) {
      const value = p[s.key];
      if (value == null || !(value > 0)) { flush(); column = null; if (s.breaks) pen = false; before = null; continue; }
      const x = Math.round(xOf(p.x) * 2) / 2, y = yOf(value);
      if (s.kind === "steps" && before != null && y !== before) { flush(); column = null; pen = false; }
      if (x === column) { least = Math.max(least, y); most = Math.min(most, y); }
      else { flush(); column = x; least = most = y; }
      before = y;
    }
    flush();
    context.stroke();
    context.setLineDash([]);
  }

  function dots(context, s) {
    const size = points.length > 3000 ? 1.4 : points.length > 400 ? 2.2 : 3.2;
    for (const verdict of s.verdicts || ["expected", "suspicious", "broken"]) {
      const ink = color(s.verdicts ? s.color : verdict), seen = new Set();
      context.fillStyle = context.strokeStyle = ink;
      context.lineWidth = 2.2;
      for (const p of points) {
        if ((p.verdict || "expected") !== verdict) continue;
        const value = p[s.key], lost = p.lost && s.lost;
        if (!lost && !(value > 0)) continue;
        const x = xOf(p.x), y = lost ? TOP : yOf(value), key = `${Math.round(x)},${Math.round(y)}`;
        if (seen.has(key)) continue;
        seen.add(key);
        mark(context, verdict, x, y, size);
      }
    }
  }

  function mark(context, verdict, x, y, size) {
    context.beginPath();
    if (verdict === "broken" || verdict === "differ") {
      const r = Math.max(size, 4);
      context.moveTo(x - r, y - r); context.lineTo(x + r, y + r);
      context.moveTo(x + r, y - r); context.lineTo(x - r, y + r);
      context.stroke();
    } else if (verdict === "suspicious" || verdict === "not_compared") {
      const r = Math.max(size, 4);
      context.moveTo(x, y - r); context.lineTo(x + r, y + r); context.lineTo(x - r, y + r);
      context.fill();
    } else {
      context.arc(x, y, size, 0, 7);
      context.fill();
    }
  }

  // The point at the pointer: of those in its column, the one that is nearest.
  function nearest(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, distance = Infinity;
    for (const p of points) {
      const dx = xOf(p.x) - x;
      if (Math.abs(dx) > 30) continue;
      for (const s of series) {
        if (s.kind !== "dots") continue;
        const value = p[s.key], lost = p.lost && s.lost;
        if (!lost && !(value > 0)) continue;
        const d = dx * dx + ((lost ? TOP : yOf(value)) - y) ** 2 / 4;
        if (d < distance) { distance = d; best = p; }
      }
    }
    return best;
  }

  canvas.addEventListener("mousemove", (event) => {
    const p = nearest(event);
    if (p) showTip(event, tell(p)); else hideTip();
  });
  canvas.addEventListener("mouseleave", hideTip);
  if (pick) {
    canvas.addEventListener("click", (event) => { const p = nearest(event); if (p) pick(p); });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !points.length) return;
      event.preventDefault();
      const index = points.findIndex((p) => p.x === chosen());
      pick(points[Math.min(Math.max(index + by, 0), points.length - 1)]);
    });
  }
  painted(paint);
}
