// A decoder with a cache. Step 1 reads the prompt, each later step `chunk` tokens. Query i may see
// key j if j <= i + q_offset, as mha.masks.causal has it. Beside each step's rows of weights stand
// those of the whole text, made at once: where the offset is right they are the same.
function compute({ scores, prompt, chunk, done, corner }) {
  const N = scores.length;
  const before = done > 1 ? prompt + (done - 2) * chunk : 0; // tokens in the cache
  const S = done ? Math.min(done > 1 ? before + chunk : prompt, N) : 0; // and after this step
  const T = S - before;
  const offset = { cache: before, "top left": 0, "bottom right": S - T }[corner];
  const rows = range(T).map((i) => range(S).map((j) => j <= i + offset));
  const weights = rows.map((row, i) => softmax(row.map((open, j) => (open ? scores[before + i][j] : -Infinity))));
  const whole = rows.map((row, i) => softmax(row.map((_, j) => (j <= before + i ? scores[before + i][j] : -Infinity))));
  const difference = Math.max(0, ...weights.flatMap((row, i) => row.map((w, j) => Math.abs(w - whole[i][j]))));
  const steps = 1 + Math.ceil((N - prompt) / chunk);
  return { before, S, T, offset, allowed: rows, weights, whole, difference, steps };
}

function build(set, { tokens, corners }) {
  const N = tokens.length;
  const steps = slider("steps so far", { min: 0, max: N, step: 1 }, (done) => set({ done }));
  const prompt = slider("prompt, tokens", { min: 1, max: N - 1, step: 1 }, (length) => set({ prompt: length, done: 1 }));
  const chunk = slider("tokens a step", { min: 1, max: 3, step: 1 }, (size) => set({ chunk: size, done: 1 }));
  const corner = menu("q_offset from", corners, (i) => set({ corner: corners[i] }));
  const slots = make("div.slots", { role: "list", "aria-label": "slots of the cache" },
    ...tokens.map(() => make("span", { role: "listitem" })));
  const masks = table("May query i see key j? Its weight, or –", tokens, tokens);
  const lines = [...masks.querySelectorAll("tr")].slice(1);
  const nodes = [steps, make("div.panes", {}, make("div", {}, prompt, chunk), make("div", {}, corner)),
    make("p", {}, "the cache, one slot a token"), slots, make("div.scroll", { tabindex: 0 }, masks)];

  function draw(values, state) {
    const { before, S, T, offset, allowed, weights, whole, difference } = values;
    steps.querySelector("input").max = values.steps;
    steps.put(state.done, `${state.done} of ${values.steps}`);
    prompt.put(state.prompt, `${state.prompt}`);
    chunk.put(state.chunk, `${state.chunk}`);
    corner.put(corners.indexOf(state.corner));
    tokens.forEach((token, j) => {
      const kind = j < before ? "kept" : j < S ? "new" : "empty";
      slots.children[j].className = `mha-${kind}`;
      slots.children[j].textContent = kind === "empty" ? "empty" : `${token} (${kind})`;
      lines[j].hidden = j < before || j >= S;
    });
    weights.forEach((row, i) => tokens.forEach((_, j) => {
      const wrong = j < S && Math.abs(row[j] - whole[i][j]) > 1e-9;
      const text = j >= S ? "" : allowed[i][j] ? fixed(row[j], 2) : "–";
      masks.put(before + i, j, wrong ? `${text} ≠ ${fixed(whole[i][j], 2)}` : text, wrong ? -0.6 : j < S ? row[j] : 0);
    }));
    if (!state.done) return "Nothing has been read: the cache is empty.";
    const verdict = difference > 1e-9
      ? `Wrong: a weight differs by ${fixed(difference, 2)} from that of the whole text (marked ≠).`
      : "Each row is that of the whole text, read at once.";
    return `Step ${state.done}: T = ${T} new ${T > 1 ? "queries" : "query"}, S = ${S} keys, ${before} from the cache, ` +
      `q_offset = ${offset}. ${verdict}`;
  }
  return { nodes, draw };
}
