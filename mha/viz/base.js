// The attention explorer: one script for pages and notebooks. mount() fills an element; explorer.py
// makes its state. What comes from a model is written as text only, never as HTML.
const SHAPES = "●■▲◆○□△◇"; // a head is known by number and shape, not by color alone
const NONE = { query: null, key: null };
const range = (n) => [...Array(n).keys()];

function make(kind, attributes = {}, ...children) {
  const [tag, name] = kind.split(".");
  const space = /^(svg|path|image|text)$/.test(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS("http://www.w3.org/" + space, tag);
  if (name) node.setAttribute("class", "mha-" + name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  node.append(...children);
  return node;
}

// Buttons with one tab stop; the arrow keys move among them and choose.
function choices(role, label, contents, pick, columns = 1) {
  const radio = role === "radiogroup";
  const buttons = contents.map((content, i) => {
    const button = make("button", { type: "button", role: radio ? "radio" : "option" }, ...content);
    button.onclick = () => pick(i, true);
    return button;
  });
  const box = make("div." + role, { role, "aria-label": label }, ...buttons);
  box.onkeydown = (event) => {
    const open = buttons.filter((button) => !button.hidden);
    const now = open.indexOf(event.target);
    const [start, end] = [-now, open.length - 1 - now];
    const jumps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: start, End: end };
    const button = open[now + jumps[event.key]];
    if (!(event.key in jumps) || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!button) return;
    button.focus();
    pick(buttons.indexOf(button));
  };
  box.mark = (chosen) => buttons.forEach((button, i) => {
    button.setAttribute(radio ? "aria-checked" : "aria-selected", i === chosen);
    button.tabIndex = i === (chosen ?? 0) ? 0 : -1;
  });
  box.buttons = buttons;
  return box;
}
