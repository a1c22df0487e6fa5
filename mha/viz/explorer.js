export function mount(el, state, changed = () => {}) {
  let { data } = state;
  let over = null; // what the mouse points at: { query } or { key }
  let view, T, S, ui, painted;
  const [L, H] = [data.layers.length, data.heads];
  el.dataset.live = "";
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves our arrow keys alone
  el.onkeydown = (event) => {
    if (event.key === "Escape") set(NONE);
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  };

  const weight = (q, k, h = state.head, l = state.layer) => view.w[((l * H + h) * T + q) * S + k];
  const level = (w) => Math.min(1, Math.max(0, w) / 1000 / view.top) ** 0.7;
  const limit = () => (data.steps ? Math.min(state.step, T - 1) : T - 1); // the last query there is
  const there = (k) => !(view.own && k > limit());
  const each = (does) => range(limit() + 1).forEach((q) => range(S).filter(there).forEach((k) => does(q, k)));
  const number = (w) => (w / 1000).toFixed(3);
  const headName = (l, h) => `${data.layers[l]}, head ${h}`;

  function entropy(l, h, first = 0, last = limit()) {
    const start = (l * H + h) * T;
    const rows = view.e.slice(start + first, start + last + 1).filter((e) => e >= 0);
    return rows.length ? rows.reduce((a, b) => a + b) / rows.length / 100 : null;
  }

  function shown() {
    const { query, key } = over ? { ...NONE, ...over } : state;
    if (query !== null && query <= limit()) return { query, key: null };
    if (key !== null && there(key)) return { query: null, key };
    return { query: data.steps ? limit() : null, key: null };
  }

  function set(changes) {
    over = null;
    state = { ...state, ...changes };
    if ("example" in changes) build();
    else draw();
    changed(changes);
  }

  const choose = (name) => (i, click) => { // a second click lets go
    if (click || state[name] !== i) set({ ...NONE, [name]: state[name] === i ? null : i });
  };

  const point = (to) => {
    over = to;
    draw();
  };

  function tokens(name, words, label, lang) {
    const contents = words.map((word) => [make("span.word", lang ? { lang } : {}, word), make("span.number")]);
    const list = choices("listbox", label, contents, choose(name));
    list.classList.add("mha-" + name);
    list.buttons.forEach((button, i) => {
      button.title = words[i];
      button.onmouseenter = () => point({ [name]: i });
      button.onfocus = () => button.matches(":focus-visible") && choose(name)(i);
    });
    list.onmouseleave = () => point(null);
    return list;
  }

  // A pixel for each cell, which the page scales up: the head's color on no ground, for any theme.
  function paint(canvas, l, h) {
    const image = new ImageData(S, T);
    const rgb = data.colors[h].match(/\d+/g);
    each((q, k) => image.data.set([...rgb, 255 * level(weight(q, k, h, l))], (q * S + k) * 4));
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // The query that lies under the pointer, on the heat map or on the picture.
  function under(event) {
    const [x, y] = [event.offsetX / ui.cells.clientWidth, event.offsetY / ui.cells.clientHeight];
    const [rows, columns] = view.image && view.own ? view.image.grid : [0, 0];
    const patch = Math.floor(y * rows) * columns + Math.floor(x * columns);
    const query = state.view === "heat" ? Math.floor(y * T) : rows ? view.image.lead + patch : -1;
    return query >= 0 && query <= limit() ? { query } : null;
  }

  function build() {
    view = data.views[state.example];
    [T, S] = [view.q.length, view.k.length];
    const canvas = () => make("canvas", { width: S, height: T, ...hidden });
    const radios = (...given) => choices("radiogroup", ...given);
    const hidden = { "aria-hidden": true };
    const shape = (h) => make("span.glyph", hidden, SHAPES[h % 8]);
    painted = null;
    ui = {
      view: radios("view", [[view.image ? "picture" : "lines"], ["heat map"]],
        (i) => set({ view: i ? "heat" : "lines" })),
      layer: radios("layer", data.layers.map((name) => [name]), (layer) => set({ layer })),
      head: radios("head", range(H).map((h) => [shape(h), `${h}`]), (head) => set({ head })),
      thumbs: radios("all heads", range(L * H).map(() => [canvas(), make("span.bits")]),
        (i) => set({ layer: Math.floor(i / H), head: i % H }), H),
      query: tokens("query", view.q, data.rows, data.languages[0]),
      key: tokens("key", view.k, data.columns, data.languages[1]),
      canvas: canvas(),
      svg: make("svg", { preserveAspectRatio: "none", ...hidden }),
      entropy: make("p"),
      bar: make("div"),
      status: make("p.status", { role: "status" }),
    };
    ui.head.buttons.forEach((button, h) => button.style.setProperty("--c", data.colors[h]));
    ui.cells = make("div.cells", {}, ui.canvas, ui.svg);
    ui.cells.onmousemove = (event) => under(event)?.query !== over?.query && point(under(event));
    ui.cells.onmouseleave = () => point(null);
    ui.cells.onclick = (event) => under(event) && choose("query")(under(event).query, true);
    const named = (text, node, tag = "div") => make(tag + ".named", {}, make("span", {}, text), node);
    ui.stage = make("div", {}, make("div.rows", hidden, data.rows), ui.query, ui.cells,
      make("div.columns", hidden, data.columns), ui.key);
    const top = make("div.top");
    if (data.views.length > 1) {
      ui.menu = make("select", {}, ...data.views.map((one, value) => make("option", { value }, one.name)));
      ui.menu.value = state.example;
      ui.menu.onchange = () => {
        const example = +ui.menu.value;
        set({ ...NONE, example, step: data.views[example].q.length - 1 });
        ui.menu.focus();
      };
      top.append(named(data.label, ui.menu, "label"));
    }
    if (L > 1) top.append(named("layer", ui.layer));
    if (H > 1) top.append(named("head", ui.head));
    top.append(named("view", ui.view));
    const legend = make("p", {}, "weight 0 ", make("span.scale"), ` ${view.top}`);
    if (view.w.includes(-1)) legend.append(make("span.swatch"), "masked");
    if (view.image) legend.append(make("br"), "framed: the strongest patch, dashed: the one chosen");
    const side = make("div.side");
    if (L * H > 1) side.append(named("all heads, entropy in bits", ui.thumbs));
    side.append(make("div", {}, ui.entropy, make("div.bar", {}, ui.bar)), legend);
    ui.root = make("div.root", { role: "group", "aria-label": data.alt }, make("p.title", {}, data.title), top,
      make("div.body", {}, ui.stage, side), ui.status);
    if (data.steps) {
      ui.range = make("input", { type: "range", min: 0, max: T - 1 });
      ui.range.oninput = () => set({ ...NONE, step: +ui.range.value });
      ui.count = make("span");
      ui.status.before(make("div.step", {}, named("step", ui.range, "label"), ui.count));
    }
    const [height, width] = view.image ? view.image.size : [1, 1];
    ui.root.style = `--n:${H};--t:${T};--s:${S};--cell:${S > 14 ? 24 : 34}px;--aspect:${width / height}`;
    el.replaceChildren(ui.root);
    draw();
  }

  function draw() {
    const now = shown();
    const heat = state.view === "heat";
    ui.stage.className = "mha-stage mha-" + (heat ? "heat" : view.image ? "picture" : "lines");
    ui.root.style.setProperty("--c", data.colors[state.head]);
    ui.key.setAttribute("aria-orientation", heat ? "horizontal" : "vertical");
    fill(ui.query, (q) => q <= limit(), now.key, (q) => weight(q, now.key));
    fill(ui.key, there, now.query, (k) => weight(now.query, k));
    const { layer, head } = state;
    const marks = { view: +heat, layer, head, thumbs: layer * H + head, ...now };
    for (const name in marks) ui[name].mark(marks[name]);
    if (painted !== limit()) ui.thumbs.buttons.forEach(thumbnail);
    painted = limit();
    if (data.steps) {
      ui.range.value = limit();
      ui.count.textContent = `${limit()} of ${T - 1}`;
    }
    const size = heat ? [S, T] : view.image ? [...view.image.grid].reverse() : [100, Math.max(T, S)];
    ui.svg.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
    ui.svg.replaceChildren();
    (heat ? cells : view.image ? picture : lines)(now);
    tell(now);
  }

  function thumbnail(button, i) {
    const [l, h] = [Math.floor(i / H), i % H];
    const [canvas, bits] = button.children;
    paint(canvas, l, h);
    bits.textContent = entropy(l, h)?.toFixed(2) ?? "–";
    button.setAttribute("aria-label", `${headName(l, h)}: ${bits.textContent} bits`);
  }

  function fill(list, open, chosen, of) {
    list.buttons.forEach((button, i) => {
      const w = chosen === null ? null : of(i);
      button.hidden = !open(i);
      button.lastChild.textContent = w === null ? "" : w < 0 ? "masked" : number(w);
      button.classList.toggle("mha-masked", w < 0);
      button.style.setProperty("--w", `${w / 10 / view.top}%`);
    });
  }

  const trace = (name, d, look) => ui.svg.append(make("path." + name, { d, ...look }));
  const write = (x, y, size, w) =>
    ui.svg.append(make("text", { x: x + 0.5, y: y + 0.6, "font-size": size }, number(w)));

  function lines({ query, key }) {
    const steps = range(12).map(() => ""); // paths by strength; the first, faint, has the lines of others
    each((q, k) => {
      const chosen = (query ?? q) === q && (key ?? k) === k;
      const step = chosen ? 1 + Math.round(10 * level(weight(q, k))) : 0;
      if (weight(q, k) > 4) steps[step] += `M0 ${q + 0.5}C45 ${q + 0.5} 55 ${k + 0.5} 100 ${k + 0.5}`;
    });
    const look = (i) => ({ "stroke-width": 0.5 + i * 0.55, "stroke-opacity": 0.1 + i * 0.08 });
    steps.forEach((d, i) => d && trace("line", d, look(i)));
  }

  function cells({ query, key }) {
    let hatch = "";
    paint(ui.canvas, state.layer, state.head);
    each((q, k) => {
      if (weight(q, k) < 0) hatch += `M${k} ${q + 0.5}l.5-.5m-.5 1l1-1m-.5 1l.5-.5`;
      else if (S < 15 && (q === query || k === key)) write(k, q, 0.32, weight(q, k));
    });
    trace("hatch", hatch);
    if (query !== null) trace("frame", `M0 ${query}h${S}v1H0z`);
    if (key !== null) trace("frame", `M${key} 0v${T}h1V0z`);
  }

  function picture({ query, key }) {
    const { src, grid: [height, width], lead } = view.image;
    const at = (p) => [p % width, Math.floor(p / width)];
    const square = (name, p, inset, look) => {
      const [[x, y], side] = [at(p), 1 - 2 * inset];
      trace(name, `M${x + inset} ${y + inset}h${side}v${side}h-${side}z`, look);
    };
    ui.svg.append(make("image", { href: src, width, height, preserveAspectRatio: "none" }));
    if (query !== null) {
      const seen = range(S - lead).map((p) => weight(query, p + lead));
      seen.forEach((w, p) => square("patch", p, 0, { "fill-opacity": 0.85 * level(w) }));
      square("frame", seen.indexOf(Math.max(...seen)), 0.03);
      if (width < 7) seen.forEach((w, p) => w > 4 && write(...at(p), width / 22, w));
    }
    const asks = (view.own ? query ?? key : key) ?? -1;
    if (asks >= lead) square("asks", asks - lead, 0.08);
  }

  function tell({ query, key }) {
    const row = query !== null;
    const keys = range(S).filter((k) => there(k) && (!row || weight(query, k) >= 0));
    const of = (i) => (row ? weight(query, i) : weight(i, key));
    const found = (row ? keys : range(limit() + 1)).filter((i) => of(i) > 0).sort((a, b) => of(b) - of(a)).slice(0, 3)
      .map((i) => `“${(row ? view.k : view.q)[i]}” (${number(of(i))})`).join(", ");
    let text = "choose a token to see its row.";
    if (row) text = `“${view.q[query]}” ` + (found ? `looks at ${found}.` : "sees nothing: its row is zero.");
    else if (key !== null) text = `“${view.k[key]}” is looked at by ${found || "nothing"}.`;
    ui.status.textContent = `${headName(state.layer, state.head)}: ${text}`;
    const bits = row ? entropy(state.layer, state.head, query, query) : entropy(state.layer, state.head);
    const most = Math.log2(keys.length || 1);
    ui.entropy.textContent = (row ? "entropy of the row: " : "mean entropy: ") +
      (bits === null ? "none" : `${bits.toFixed(2)} of at most ${most.toFixed(2)} bits`);
    ui.bar.style.width = `${most ? (100 * bits) / most : 0}%`;
  }

  build();
  return (now) => {
    const other = now.data !== data || now.example !== state.example;
    [data, state, over] = [now.data, now, null];
    if (other) build();
    else draw();
  };
}

export function render({ model, el }) {
  const names = ["layer", "head", "query", "key", "step", "view", "example", "data"];
  const read = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  let own = false; // what we say ourselves need not be heard
  const show = mount(el, read(), (changes) => {
    own = true;
    for (const name in changes) model.set(name, changes[name]);
    own = false;
    model.save_changes();
  });
  const follow = () => own || show(read());
  const each = (does) => names.forEach((name) => model[does]("change:" + name, follow));
  each("on");
  return () => each("off");
}
