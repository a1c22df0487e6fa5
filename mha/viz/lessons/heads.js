// Multi-head attention of width E, cut into H heads of width D = E / H: shapes, parameters, and
// FLOPs and bytes as mha.cost counts them, readable path, self-attention (S = T), float32.
function compute({ width, batch, heads: exponent, length }) {
  const [E, B, H, T] = [width, batch, 2 ** exponent, 2 ** length];
  const D = E / H;
  const scores = B * H * T * T;
  return {
    H, D, T,
    shapes: { x: [B, T, E], heads: [B, H, T, D], scores: [B, H, T, T], merged: [B, T, E] },
    parameters: 4 * E * E + 4 * E,
    flops: {
      projections: 4 * 2 * B * T * E * E, scores: 2 * scores * D, softmax: 5 * scores, "weighted sum": 2 * scores * D,
    },
    bytes: 4 * scores,
  };
}

const COLORS = ["#1a68e0", "#bf5600", "#0e8243", "#c03aa0", "#007f8c", "#7a7400", "#7645e0", "#955f30"];
const grouped = (n) => `${n}`.replace(/\B(?=(\d{3})+$)/g, ",");

function build(set, { width, batch, most }) {
  const heads = slider("heads H", { min: 0, max: most, step: 1 }, (exponent) => set({ heads: exponent }));
  const length = slider("length T", { min: 3, max: 12, step: 1 }, (exponent) => set({ length: exponent }));
  const strip = make("div.strip", { "aria-hidden": true });
  const named = {
    x: "input, (B, T, E)", heads: "q, k, v each, (B, H, T, D)", scores: "scores, (B, H, T, T)", merged: "heads joined, (B, T, E)",
  };
  const shapes = table("Shapes", ["shape", "numbers"], Object.values(named));
  const parts = ["projections", "scores", "softmax", "weighted sum"];
  const work = table("FLOPs, forward", ["FLOPs", "share"], [...parts, "together"]);
  const kept = table("What H changes, and what it does not", ["count"],
    ["parameters", "FLOPs of the products", "weights that are made", "bytes of the weights"]);
  const wide = (node) => make("div.scroll", {}, node);
  const left = make("div", {}, wide(shapes), wide(kept));
  const nodes = [heads, length, make("p", {}, `the width E = ${width}, cut into H heads of D numbers (B = ${batch}):`), strip,
    make("div.panes", {}, left, make("div", {}, wide(work)))];

  function draw(values, state) {
    const { H, D, T, flops, bytes, parameters } = values;
    heads.put(state.heads, `${H}`);
    length.put(state.length, `${T}`);
    strip.replaceChildren(...range(H).map((h) => {
      const block = make("span", {}, H > 16 ? "" : `${h}`);
      block.style.setProperty("--c", COLORS[h % COLORS.length]);
      return block;
    }));
    Object.keys(named).forEach((name, i) => {
      const shape = values.shapes[name];
      shapes.put(i, 0, `(${shape.join(", ")})`);
      shapes.put(i, 1, grouped(shape.reduce((a, b) => a * b)));
    });
    const all = parts.map((part) => flops[part]).reduce((a, b) => a + b);
    const products = all - flops.softmax;
    [...parts.map((part) => flops[part]), all].forEach((count, i) => {
      work.put(i, 0, grouped(count));
      work.put(i, 1, `${fixed((100 * count) / all, 1)} %`, i < parts.length ? count / all : 0);
    });
    [parameters, products, bytes / 4, bytes].forEach((count, i) => kept.put(i, 0, grouped(count)));
    return `${H} ${H > 1 ? "heads" : "head"} of width ${D}: ${grouped(parameters)} parameters and ${grouped(products)} FLOPs ` +
      `of products, as for any other number of heads; ${grouped(bytes)} bytes of weights` +
      (H > 1 ? `, ${H} times those of one head.` : ".");
  }
  return { nodes, draw };
}
