// Quiz questions that can be answered. In the source, a question is a paragraph, a numbered list of
// choices, and <details class="quiz"> with one explanation for each choice, of which the right one
// begins with "Right." in bold. That reads well without this script; with it, the choices become
// radio buttons, and a reader sees the explanation of the choice made. Nothing is stored or sent.
(() => {
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  const before = (element, name) => {
    const found = element?.previousElementSibling;
    return found?.localName === name ? found : null;
  };

  // The content of a list item, without the paragraph around it.
  const content = (item) => {
    const only = item.children.length === 1 && item.firstElementChild.localName === "p";
    return [...(only ? item.firstElementChild : item).childNodes];
  };

  const isRight = (item) => item.querySelector("strong")?.textContent.trim() === "Right.";

  const enliven = (details, number) => {
    const explanations = [...details.querySelectorAll(":scope > ol > li")];
    const list = before(details, "ol");
    const question = before(list, "p");
    const choices = list ? [...list.children] : [];
    if (!question || choices.length !== explanations.length) return;

    const group = make("fieldset", {}, make("legend", {}, ...question.childNodes));
    choices.forEach((choice, i) => {
      const radio = make("input", { type: "radio", name: `quiz-${number}`, value: i });
      group.append(make("label", {}, radio, make("span", {}, ...content(choice))));
    });
    const said = make("div", { className: "quiz-said", role: "status" });
    const button = make("button", { type: "submit", textContent: "Check" });
    const form = make("form", { className: "quiz-question" }, group, button, said);

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const chosen = form.elements[`quiz-${number}`].value;
      const explanation = explanations[chosen];
      said.className = "quiz-said";
      if (!explanation) {
        said.replaceChildren(make("p", {}, "Choose one of the four first."));
        return;
      }
      const right = isRight(explanation);
      said.classList.add(right ? "quiz-right" : "quiz-wrong");
      said.replaceChildren(make("p", {}, ...content(explanation.cloneNode(true))));
      if (right) details.hidden = false;
    });
    form.addEventListener("change", () => {
      said.className = "quiz-said";
      said.replaceChildren();
    });

    question.replaceWith(form);
    list.remove();
    details.hidden = true; // until the question is answered
    details.querySelector("summary").textContent = "All four explanations";
  };

  const start = () => document.querySelectorAll("details.quiz").forEach(enliven);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
