// The online softmax as mha.flash.rows.online_softmax has it: one tile of keys a step. A state keeps the
// greatest score so far, the sum of exp(score - maximum), and the same sum with the values.
function step({ maximum, total, output }, scores, values) {
  const greatest = Math.max(maximum, ...scores);
  const safe = greatest === -Infinity ? 0 : greatest; // nothing to be seen yet
  const weights = scores.map((score) => Math.exp(score - safe));
  const rescale = Math.exp(maximum - safe);
  const sum = (terms) => terms.reduce((a, b) => a + b, 0);
  return {
    maximum: greatest, rescale, weights,
    total: rescale * total + sum(weights),
    output: output.map((o, d) => rescale * o + sum(weights.map((w, n) => w * values[n][d]))),
  };
}

function compute({ scores, values, block, done }) {
  const states = [{ maximum: -Infinity, total: 0, output: values[0].map(() => 0), rescale: 1, weights: [] }];
  for (let first = 0; first < scores.length; first += block)
    states.push(step(states.at(-1), scores.slice(first, first + block), values.slice(first, first + block)));
  const tiles = states.length - 1;
  const now = Math.min(done, tiles);
  const average = ({ total, output }) => output.map((o) => (total > 0 ? o / total : 0));
  const row = softmax(scores);
  const exact = values[0].map((_, d) => row.reduce((sum, w, s) => sum + w * values[s][d], 0));
  return { tiles, now, met: Math.min(now * block, scores.length), state: states[now], average: average(states[now]), row, exact };
}

function build(set, { scores, values, blocks }) {
  const steps = slider("tiles read", { min: 0, max: scores.length, step: 1 }, (done) => set({ done }));
  const tiles = menu("keys in a tile", blocks.map(String), (i) => set({ block: blocks[i], done: 0 }));
  const names = scores.map((_, s) => `${s}`);
  const width = range(values[0].length);
  const keys = table("The row: what one query meets, tile by tile", names,
    ["score", ...width.map((d) => `value ${d}`), "exp(score − maximum)", "softmax of the whole row"]);
  const kept = table("What is kept", ["now"],
    ["maximum", "rescaled by", "sum", ...width.map((d) => `output ${d}`)]);
  const ends = table("Output ÷ sum, beside the exact row", ["now", "exact"], width.map((d) => `value ${d}`));
  const wide = (node) => make("div.scroll", { tabindex: 0 }, node);
  const nodes = [steps, tiles, wide(keys), make("div.panes", {}, wide(kept), wide(ends))];

  function draw({ tiles: all, now, met, state, average, row, exact }, { block }) {
    const first = Math.max(0, now - 1) * block;
    const tile = (s) => s >= first && s < met;
    steps.querySelector("input").max = all;
    steps.put(now, `${now} of ${all}`);
    tiles.put(blocks.indexOf(block));
    scores.forEach((score, s) => {
      const column = [fixed(score, 1), ...values[s].map((v) => fixed(v, 1)),
        tile(s) ? fixed(state.weights[s - first]) : s < met ? "·" : "", fixed(row[s])];
      column.forEach((text, i) => {
        keys.put(i, s, text, tile(s) ? 1 : s < met ? 0.3 : 0);
        keys.cells[i][s].classList.toggle("mha-ahead", s >= met && i < column.length - 1);
      });
    });
    [fixed(state.maximum, 1), fixed(state.rescale), fixed(state.total), ...state.output.map((o) => fixed(o))]
      .forEach((text, i) => kept.put(i, 0, text));
    width.forEach((d) => [average[d], exact[d]].forEach((x, i) => ends.put(d, i, fixed(x))));
    const end = now === all ? ", which is the exact row" : `; the exact row gives ${listed(exact)}`;
    return `${met} of ${scores.length} keys met: maximum ${fixed(state.maximum, 1)}, sum ${fixed(state.total)}, ` +
      `what was kept was rescaled by ${fixed(state.rescale)}. The output is ${listed(average)}${end}.`;
  }
  return { nodes, draw };
}
