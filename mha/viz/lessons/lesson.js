// What the lessons share beyond base.js. A lesson's own file defines compute(state), its numbers by
// the formula of the package, and build(set, state): { nodes, draw(values, state) }, where draw
// shows the numbers and returns a sentence that says the same.
function fixed(x, digits = 3) {
  if (Math.abs(x) === Infinity) return x < 0 ? "−∞" : "∞";
  const text = x.toFixed(digits);
  return (+text === 0 ? text.replace("-", "") : text).replace("-", "−");
}

const listed = (numbers, digits) => numbers.map((x) => fixed(x, digits)).join(", ");

// As mha.reference.softmax: a row that sees nothing, -Infinity throughout, gives zeros.
function softmax(scores) {
  const largest = Math.max(...scores);
  const raw = scores.map((score) => (largest === -Infinity ? 0 : Math.exp(score - largest)));
  const total = raw.reduce((a, b) => a + b, 0);
  return raw.map((x) => x / (total || 1));
}

// In bits, as mha.viz.explorer_view.entropy.
const entropyOf = (weights) => weights.reduce((sum, w) => (w > 0 ? sum - w * Math.log2(w) : sum), 0);

// A slider; put(value, text) moves it and writes the text beside it.
function slider(label, scale, pick) {
  const input = make("input", { type: "range", ...scale });
  const shown = make("span.value");
  const row = make("label.slider", {}, make("span", {}, label), input, shown);
  input.oninput = () => pick(+input.value);
  row.put = (value, text) => {
    input.value = value;
    shown.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  return row;
}

// Radio buttons with a label before them; put(i) marks one.
function menu(label, words, pick) {
  const radios = choices("radiogroup", label, words.map((word) => [word]), pick);
  const row = make("div.named", {}, make("span", {}, label), radios);
  row.put = radios.mark;
  return row;
}

// A table of numbers; put(i, j, text, level) writes a cell and tints it, level from -1 to 1.
function table(caption, columns, rows) {
  const cells = rows.map(() => columns.map(() => make("td")));
  const head = columns.map((name) => make("th", { scope: "col" }, name));
  const lines = rows.map((name, i) => make("tr", {}, make("th", { scope: "row" }, name), ...cells[i]));
  const node = make("table.table", {}, make("caption", {}, caption),
    make("tbody", {}, make("tr", {}, make("td"), ...head), ...lines));
  node.cells = cells;
  node.put = (i, j, text, level = 0) => {
    cells[i][j].textContent = text;
    cells[i][j].className = level < 0 ? "mha-minus" : "";
    cells[i][j].style.setProperty("--level", `${Math.min(38, 38 * Math.abs(level))}%`);
  };
  return node;
}

// Bars from 0 to 1 with a name and a number each; put(weights) draws them.
function barChart(title, names) {
  const bars = names.map((name) => make("div", {}, make("span", {}, name), make("i"), make("span")));
  const node = make("div", {}, make("p", {}, title), make("div.bars", {}, ...bars));
  node.put = (weights) => weights.forEach((w, i) => {
    bars[i].style.setProperty("--w", `${100 * w}%`);
    bars[i].lastChild.textContent = fixed(w);
  });
  return node;
}

export function mount(el, state) {
  const status = make("p.status", { role: "status" });
  const lesson = build(set, state);
  function set(changes) {
    state = { ...state, ...changes };
    el.values = compute(state);
    status.textContent = lesson.draw(el.values, state);
  }
  el.set = set; // for tests, as el.values is
  el.dataset.live = "";
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves our arrow keys alone
  el.onkeydown = (event) => event.ctrlKey || event.metaKey || event.stopPropagation();
  const root = make("div.root", { role: "group", "aria-label": state.alt },
    make("p.title", {}, state.title), ...lesson.nodes, status);
  const words = el.querySelector("details") ??
    make("details.words", {}, make("summary", {}, "In words"), ...state.words.map((text) => make("p", {}, text)));
  el.append(root, words);
  set({});
}

export function render({ model, el }) {
  mount(el, model.get("state"));
}
