// For readers: the cards of glossary terms, and the ticks at chapters that were read. Without this
// script a term is a link like any other, and there are no ticks. Nothing leaves the browser.
(() => {
  const GAP = 4; // between a term and its card, in pixels
  const PATIENCE = 200; // milliseconds to move the pointer from a term to its card
  const KEY = "mha-chapters-read";

  // Cards: open on hover and focus, stay while the pointer is on them, close on Escape.
  const cards = () => {
    let open = null; // the card that is shown, and its term
    let timer = 0;
    let touched = false;

    const close = () => {
      clearTimeout(timer);
      if (open) open.card.hidden = true;
      open = null;
    };
    const closeSoon = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        if (!open?.term.matches(":focus")) close();
      }, PATIENCE);
    };

    const place = ({ term, card }) => {
      const boxes = [...term.getClientRects()]; // a term may break over two lines
      const box = boxes[0];
      const last = boxes[boxes.length - 1];
      const room = document.documentElement.clientWidth - card.offsetWidth - 8;
      const below = last.bottom + GAP;
      const fits = below + card.offsetHeight <= window.innerHeight || box.top < card.offsetHeight + GAP;
      const top = fits ? below : box.top - GAP - card.offsetHeight;
      const left = Math.max(8, Math.min(boxes.length > 1 ? last.left : box.left, room));
      const origin = card.offsetParent.getBoundingClientRect();
      card.style.left = `${left - origin.left}px`;
      card.style.top = `${top - origin.top}px`;
    };

    const show = (term, card) => {
      clearTimeout(timer);
      if (open?.card === card) return;
      close();
      open = { term, card };
      card.hidden = false;
      place(open);
    };

    document.querySelectorAll("a.mha-term").forEach((term) => {
      const card = document.getElementById(term.getAttribute("aria-describedby"));
      if (!card) return;
      const byMouse = (event) => event.pointerType !== "touch";
      term.addEventListener("pointerenter", (event) => byMouse(event) && show(term, card));
      term.addEventListener("pointerleave", (event) => byMouse(event) && closeSoon());
      term.addEventListener("focus", () => show(term, card));
      term.addEventListener("blur", closeSoon);
      card.addEventListener("pointerenter", () => clearTimeout(timer));
      card.addEventListener("pointerleave", (event) => byMouse(event) && closeSoon());
      // A finger cannot hover: its first tap shows the card, the next follows the link.
      term.addEventListener("pointerdown", (event) => {
        touched = event.pointerType === "touch" && open?.card !== card;
      });
      term.addEventListener("click", (event) => {
        if (!touched) return;
        touched = false;
        event.preventDefault();
        show(term, card);
      });
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && close());
    document.addEventListener("pointerdown", ({ target }) => {
      if (open && !open.card.contains(target) && !open.term.contains(target)) close();
    });
    window.addEventListener("resize", close);
  };

  // Ticks: the pages that were read, kept by the browser if it keeps anything.
  const load = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return new Set(Array.isArray(kept) ? kept : []);
    } catch {
      return new Set(); // nothing may be read, or what is there is not ours
    }
  };
  const save = (read) => {
    try {
      localStorage.setItem(KEY, JSON.stringify([...read].sort()));
      return true;
    } catch {
      return false;
    }
  };

  const ticks = () => {
    if (!save(load())) return; // nothing can be kept, so nothing is offered
    const marks = [...document.querySelectorAll(".mha-tick")];
    const chapters = new Set(marks.map((mark) => mark.dataset.page));
    const place = document.querySelector(".mha-progress");
    const button = document.createElement("button");
    if (place) {
      const count = document.createElement("p");
      count.className = "mha-count";
      count.setAttribute("role", "status");
      button.type = "button";
      button.textContent = "Mark this chapter as read";
      place.append(button, count);
    }

    const draw = () => {
      const read = load();
      marks.forEach((mark) => {
        const done = read.has(mark.dataset.page);
        mark.textContent = done ? "✓" : "";
        if (done) {
          mark.setAttribute("role", "img");
          mark.setAttribute("aria-label", "read");
        } else {
          mark.removeAttribute("role");
          mark.removeAttribute("aria-label");
        }
      });
      const number = [...chapters].filter((page) => read.has(page)).length;
      const text = `${number} of ${chapters.size} chapters read`;
      document.querySelectorAll(".mha-count").forEach((count) => {
        if (count.textContent !== text) count.textContent = text;
      });
      button.setAttribute("aria-pressed", String(read.has(place?.dataset.page)));
    };

    button.addEventListener("click", () => {
      const read = load();
      const page = place.dataset.page;
      if (!read.delete(page)) read.add(page);
      save(read);
      draw();
    });
    window.addEventListener("storage", draw); // another tab has changed it
    window.addEventListener("pageshow", draw); // back from another page
    draw();
  };

  const start = () => {
    cards();
    ticks();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
