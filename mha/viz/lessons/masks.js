// Scores under a mask: weights, queries that see nothing, and the mask as each library wants it.
// A plain softmax: of a row of −∞ it gives NaN.
function plain(row) {
  const largest = Math.max(...row);
  const raw = row.map((score) => Math.exp(score - largest));
  const total = raw.reduce((a, b) => a + b);
  return raw.map((x) => x / total);
}

function compute({ scores, values, mask, least, forms, form }) {
  const under = (low) => scores.map((row, i) => plain(row.map((score, j) => score + (mask[i][j] ? 0 : low))));
  const naive = under(-Infinity);
  const dead = range(mask.length).filter((i) => !mask[i].includes(true));
  const weights = naive.map((row, i) => row.map((w) => (dead.includes(i) ? 0 : w)));
  const ways = [weights, naive, under(least)]; // in the order of the fates
  const mixed = (row) => values[0].map((_, d) => row.reduce((sum, w, j) => sum + w * values[j][d], 0));
  const sums = weights.map((row) => row.reduce((a, b) => a + b));
  const marks = { attend: [true, false], blocked: [false, true], min: [0, least], inf: [0, -Infinity] };
  const [open, shut] = marks[forms[form].marks];
  let given = mask.map((row) => row.map((ok) => (ok ? open : shut)));
  for (const _ of range(forms[form].axes)) given = [given]; // axes of 1 before (T, S)
  return { weights, sums, dead, ways, outputs: ways.map((way) => way.map(mixed)), given };
}

function toggles(scores, rows, columns, flip) {
  const grid = table("scores under the mask (press a cell)", columns, rows);
  grid.setAttribute("role", "grid");
  grid.classList.add("mha-toggles");
  let at = 0;
  const buttons = scores.flat().map((score, n) => {
    const [i, j] = [Math.floor(n / columns.length), n % columns.length];
    const name = `query ${i} may attend to key ${j}, score ${fixed(score, 1)}`;
    const button = make("button", { type: "button", "aria-label": name, tabindex: n ? -1 : 0 });
    button.onfocus = () => {
      buttons[at].tabIndex = -1;
      button.tabIndex = 0;
      at = n;
    };
    button.onclick = () => flip(i, j);
    grid.cells[i][j].append(button);
    return button;
  });
  grid.onkeydown = (event) => {
    const [i, j] = [Math.floor(at / columns.length), at % columns.length];
    const [y, x] = {
      ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j],
      Home: [i, 0], End: [i, columns.length - 1],
    }[event.key] ?? [];
    if (y === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (y in rows && x in columns) buttons[y * columns.length + x].focus();
  };
  grid.show = (mask) => mask.flat().forEach((ok, n) => {
    buttons[n].setAttribute("aria-pressed", ok);
    buttons[n].textContent = fixed(ok ? scores.flat()[n] : -Infinity, 1);
  });
  return grid;
}

function build(set, { scores, starts, forms, fates }) {
  const queries = scores.map((_, i) => `query ${i}`);
  const keys = scores[0].map((_, j) => `key ${j}`);
  let now;
  const flip = (i, j) => set({ mask: now.map((row, a) => row.map((ok, b) => (a === i && b === j) !== ok)) });
  const start = menu("start with", starts.map(([name]) => name), (n) => set({ mask: starts[n][2] }));
  const library = menu("written for", forms.map(({ name }) => name), (form) => set({ form }));
  const grid = toggles(scores, queries, keys, flip);
  const weights = table("weights: the softmax of each row", [...keys, "sum"], queries);
  const written = table("the mask as it is passed", keys, queries);
  const fate = table("", ["weights", "output"], fates);
  fate.classList.add("mha-fates");
  const [code, call] = [make("code.call"), make("code.call")];
  const says = make("p");
  const pane = (node, ...parts) => make("div", {}, make("div.scroll", {}, node), ...parts);
  const nodes = [make("div.masks", {},
    start, code, make("div.panes", {}, pane(grid), pane(weights)),
    library, call, make("div.panes", {}, pane(written, says), pane(fate)))];

  function draw({ weights: rows, sums, dead, ways, outputs, given }, { mask, form }) {
    now = mask;
    const chosen = forms[form];
    const known = starts.findIndex((one) => `${one[2]}` === `${mask}`);
    start.put(known < 0 ? null : known);
    library.put(form);
    const typed = `torch.tensor(${JSON.stringify(mask.map((row) => row.map(Number)))}).bool()`;
    code.textContent = `mask = ${known < 0 ? typed : starts[known][1]}`;
    call.textContent = `given = ${chosen.code}`;
    says.textContent = `shape ${chosen.shape}. ${chosen.means}.`;
    grid.show(mask);
    const marks = { true: "True", false: "False", 0: "0", "-Infinity": "−inf" };
    given.flat(chosen.axes).forEach((row, i) => row.forEach((mark, j) => {
      weights.put(i, j, fixed(rows[i][j]), rows[i][j]);
      written.put(i, j, marks[mark] ?? "min");
      for (const { cells } of [weights, written]) cells[i][j].classList.toggle("mha-shut", !mask[i][j]);
    }));
    sums.forEach((sum, i) => weights.put(i, keys.length, fixed(sum), dead.includes(i) ? -1 : 0));
    const who = `${dead.length > 1 ? "queries" : "query"} ${dead.join(", ").replace(/, (\d+)$/, " and $1")}`;
    const blind = `${who} ${dead.length > 1 ? "see" : "sees"} nothing`;
    fate.caption.textContent = dead.length ? `${blind}: what becomes of it` : "no dead row yet: close all cells of one";
    fates.forEach((_, n) => {
      fate.put(n, 0, dead.length ? `${keys.length} × ${fixed(ways[n][dead[0]][0])}` : "–");
      fate.put(n, 1, dead.length ? listed(outputs[n][dead[0]], 2) : "–");
      fate.rows[n + 1].setAttribute("aria-current", chosen.fates.includes(n));
    });
    const open = mask.flat().filter(Boolean).length;
    const end = dead.length ? `In mha ${blind}: weights 0, output 0.` : "Each query sees at least one key.";
    return `${open} of ${mask.flat().length} pairs may attend. ${end} For ${chosen.name}, ${chosen.means}.`;
  }
  return { nodes, draw };
}
