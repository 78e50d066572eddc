// A table of any length: only the rows in sight exist; sorting and searching see all of them.
const ROW = 26;

// columns: [{name, title, width, number, value(row), show(row), hint, empty}], where `empty` says how a
// missing number sorts: Infinity for one that is not finite, else last.
function table(place, { rows, columns, text, filters, pick, chosen, most = 16 }) {
  const search = make("input", { type: "search", placeholder: "Search, e.g. attn softmax", "aria-label": "Search" });
  const choice = filters && make("select", { "aria-label": "Filter" }, ...filters.map(([name]) => make("option", {}, name)));
  const count = make("span", { class: "hint", role: "status" });
  const grid = make("div", { class: `grid${pick ? " pick" : ""}`, tabindex: 0, role: "table", "aria-rowcount": rows.length });
  const head = make("div", { class: "row head", role: "row" });
  const body = make("div", { role: "rowgroup", style: "position: relative" });
  const template = `grid-template-columns: ${columns.map((c) => c.width).join(" ")}; min-width: 900px`;
  const needles = text && rows.map((row) => text(row).toLowerCase());
  const order = new Map(rows.map((row, index) => [row, index]));
  let sorted = null, down = true, shown = rows;
  grid.append(head, body);
  head.setAttribute("style", `${template}; position: sticky`);
  for (const column of columns) {
    const button = make("button", { title: column.hint || "", class: column.number ? "number" : "", onclick: () => {
      down = sorted === column ? !down : !!column.number;
      sorted = column;
      update();
    } }, column.title);
    head.append(make("span", { role: "columnheader", style: "padding: 0; display: grid; height: 100%" }, button));
  }

  function compare(one, other) {
    const [a, b] = [one, other].map((row) => { const v = sorted.value(row); return v == null ? sorted.empty ?? null : v; });
    if (a === b) return order.get(one) - order.get(other);
    if (a == null || b == null) return a == null ? 1 : -1;
    const sign = typeof a === "string" ? a.localeCompare(b) : a - b;
    return (down ? -sign : sign) || order.get(one) - order.get(other);
  }

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = filters && filters[choice.selectedIndex][1];
    shown = rows.filter((row, i) => (!wanted || wanted(row)) && words.every((word) => needles[i].includes(word)));
    if (sorted) shown.sort(compare);
    [...head.children].forEach((cell, i) => {
      const own = columns[i] === sorted;
      cell.setAttribute("aria-sort", own ? (down ? "descending" : "ascending") : "none");
      cell.firstChild.textContent = columns[i].title + (own ? (down ? " ▼" : " ▲") : "");
    });
    body.style.height = `${shown.length * ROW}px`;
    grid.style.height = `${Math.min(Math.max(shown.length, 1), most) * ROW + ROW + 4}px`;
    count.textContent = shown.length === rows.length ? counted(rows.length, "row") : `${shown.length} of ${counted(rows.length, "row")}`;
    grid.scrollTop = 0;
    fill();
  }

  function fill() {
    const first = Math.max(0, Math.floor(grid.scrollTop / ROW) - 4);
    const last = Math.min(shown.length, first + most + 10);
    const made = [];
    for (let i = first; i < last; i++) made.push(line(shown[i], i));
    body.replaceChildren(...made);
  }

  function line(row, index) {
    const current = chosen && chosen() === row;
    const node = make("div", { class: `row${current ? " chosen" : ""}`, role: "row", "aria-rowindex": index + 2,
      style: `${template}; top: ${index * ROW}px`, onclick: pick ? () => pick(row) : () => {} });
    for (const column of columns) {
      const content = column.show ? column.show(row) : column.number ? number(column.value(row)) : column.value(row) ?? "";
      const cell = make("span", { role: "cell", class: column.number ? "number" : "" }, content);
      const whole = column.value(row);
      if (!column.number) cell.title = typeof whole === "string" ? whole : cell.textContent;
      node.append(cell);
    }
    return node;
  }

  grid.addEventListener("scroll", fill);
  grid.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by || !pick || event.target !== grid) return;
    event.preventDefault();
    const index = Math.min(Math.max(shown.indexOf(chosen()) + by, 0), shown.length - 1);
    if (index * ROW < grid.scrollTop) grid.scrollTop = index * ROW;
    if ((index + 2) * ROW > grid.scrollTop + grid.clientHeight) grid.scrollTop = (index + 2) * ROW - grid.clientHeight;
    if (shown[index]) pick(shown[index]);
  });
  search.addEventListener("input", update);
  if (choice) choice.addEventListener("change", update);
  place.append(make("div", { class: "bar" }, search, choice, count), grid);
  update();
  return fill;
}
