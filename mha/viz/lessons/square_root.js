// q . k of vectors of D numbers, plain and over sqrt(D): weights, entropy in bits, the largest
// weight, and the size (Frobenius norm) of the Jacobian of the softmax.
function compute({ queries, keys, query, exponent }) {
  const width = 2 ** exponent;
  const dot = (key) => queries[query].slice(0, width).reduce((sum, q, d) => sum + q * key[d], 0);
  const scores = keys.map(dot);
  const side = (scale) => {
    const scaled = scores.map((score) => score * scale);
    const weights = softmax(scaled);
    const jacobian = weights.flatMap((wi, i) => weights.map((wj, j) => wi * ((i === j) - wj)));
    return { scores: scaled, weights, entropy: entropyOf(weights), largest: Math.max(...weights), slope: Math.hypot(...jacobian) };
  };
  return { width, plain: side(1), scaled: side(1 / Math.sqrt(width)) };
}

function build(set, { queries, keys, widest }) {
  const names = keys.map((_, i) => `key ${i}`);
  const width = slider("width D", { min: 0, max: widest, step: 1 }, (exponent) => set({ exponent }));
  const draws = menu("query", queries.map((_, i) => `${i}`), (query) => set({ query }));
  const sides = { plain: "q · k", scaled: "q · k / √D" };
  const charts = Object.entries(sides).map(([side, title]) => {
    const bars = barChart(`weights of ${title}`, names);
    const facts = table("", ["scores from", "to", "entropy, bits", "slope"], [title]);
    bars.append(make("div.scroll", {}, facts));
    return [side, bars, facts];
  });
  const nodes = [width, draws, make("div.panes", {}, ...charts.map(([, bars]) => bars))];

  function draw(values, { exponent, query }) {
    width.put(exponent, `${values.width}`);
    draws.put(query);
    for (const [side, bars, facts] of charts) {
      const { scores, weights, entropy, slope } = values[side];
      bars.put(weights);
      [fixed(Math.min(...scores), 1), fixed(Math.max(...scores), 1), fixed(entropy, 2), fixed(slope)]
        .forEach((text, i) => facts.put(0, i, text));
    }
    const { plain, scaled } = values;
    return `At width ${values.width} the largest weight is ${fixed(plain.largest)} without the root and ` +
      `${fixed(scaled.largest)} with it; the slope of the softmax is ${fixed(plain.slope)} and ${fixed(scaled.slope)}.`;
  }
  return { nodes, draw };
}
