// MathJax for typeset.py: reads one question of JSON a line, writes one answer a line.
// {tex, display} -> {html} or {html, error}; {css: true} -> {css}.
const path = require("node:path");
const root = path.join(process.argv[2], "mathjax/es5");

global.MathJax = {
  loader: {
    paths: { mathjax: root },
    require,
    load: ["input/tex-full", "output/chtml", "adaptors/liteDOM", "a11y/assistive-mml"],
  },
  // A name that TeX does not know is a mistake, not red text.
  tex: { packages: { "[-]": ["noundefined", "noerrors"] } },
  chtml: { fontURL: "fonts", adaptiveCSS: false },
  startup: { typeset: false },
};
require(path.join(root, "startup.js"));

const answer = ({ tex, display, css }) => {
  const adaptor = MathJax.startup.adaptor;
  if (css) return { css: adaptor.textContent(MathJax.chtmlStylesheet()) };
  const html = adaptor.outerHTML(MathJax.tex2chtml(tex, { display }));
  const error = html.match(/data-mjx-error="([^"]*)"/);
  return error ? { html, error: error[1] } : { html };
};

MathJax.startup.promise.then(() => {
  const lines = require("node:readline").createInterface({ input: process.stdin });
  lines.on("line", (line) => process.stdout.write(`${JSON.stringify(answer(JSON.parse(line)))}\n`));
});
