// What scrolls sideways can be reached by Tab and scrolled by the arrow keys. The theme does this for
// code and tables only, when the page loads: in some browsers what is folded has no width then. So
// look at formulas and figures too, and again whenever something unfolds. An element that has a
// place in the order of Tab already, or was taken out of it by its own script, keeps it.
(() => {
  const THEME = "pre, .output, .pst-scrollable-table-container"; // as the theme chooses
  const mine = new WeakSet();

  const mark = () => {
    for (const box of document.querySelectorAll("article :is(div, pre, mjx-container)")) {
      if (box.hasAttribute("tabindex") && !mine.has(box) && !box.matches(THEME)) continue;
      const wider = box.clientWidth > 0 && box.scrollWidth > box.clientWidth;
      if (wider && !["visible", "hidden"].includes(getComputedStyle(box).overflowX)) {
        box.tabIndex = 0;
        mine.add(box);
      } else if (mine.delete(box)) {
        box.removeAttribute("tabindex");
      }
    }
  };

  let asked = 0;
  const soon = () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(mark);
  };
  document.addEventListener("toggle", soon, true); // of any <details>; this event does not bubble
  addEventListener("resize", soon);
  addEventListener("load", soon);
})();
