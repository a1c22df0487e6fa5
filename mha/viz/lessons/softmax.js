// softmax(scores / temperature): weights, their entropy in bits, and d weight_i / d score_j.
function compute({ scores, exponent }) {
  const temperature = 2 ** exponent;
  const weights = softmax(scores.map((score) => score / temperature));
  const gradient = weights.map((wi, i) => weights.map((wj, j) => (wi * ((i === j) - wj)) / temperature));
  return { temperature, weights, entropy: entropyOf(weights), gradient };
}

function build(set, { keys, scores }) {
  const scale = { min: -4, max: 4, step: 0.1 };
  const sliders = scores.map((_, i) => slider(`score of ${keys[i]}`, scale, (score) => move(i, score)));
  const heat = slider("temperature", { min: -3, max: 3, step: 0.25 }, (exponent) => set({ exponent }));
  const bars = barChart("weights", keys);
  const slopes = table("how the weight of a row changes with the score of a column", keys, keys);
  let current;
  const move = (i, score) => set({ scores: current.map((old, j) => (i === j ? score : old)) });
  const right = make("div", {}, bars, make("div.scroll", {}, slopes));
  const nodes = [make("div.panes", {}, make("div", {}, ...sliders, heat), right)];

  function draw({ temperature, weights, entropy, gradient }, state) {
    current = state.scores;
    current.forEach((score, i) => sliders[i].put(score, fixed(score, 1)));
    heat.put(state.exponent, fixed(temperature, 2));
    bars.put(weights);
    gradient.forEach((row, i) => row.forEach((g, j) => slopes.put(i, j, fixed(g), 2 * g)));
    const steepest = Math.max(...gradient.map((row, i) => row[i]));
    return `At temperature ${fixed(temperature, 2)} the weights are ${listed(weights)}: ` +
      `${fixed(entropy, 2)} of at most ${fixed(Math.log2(keys.length), 2)} bits. ` +
      `The steepest slope is ${fixed(steepest)}.`;
  }
  return { nodes, draw };
}
