// How the search orders what it found; Sphinx copies this into its own script (html_search_scorer).
// Sphinx counts a word in any heading as much as one in the title of a page, and pages where a term
// is only listed as much as those that explain it. So: a page whose title has the words asked for
// comes before others, the appendix and the reference after the chapters, and of equals the earlier
// chapter. But who asks for a name of code, such as Rotary or split_heads, wants its entry.
var Scorer = {
  score: ([page, title, _anchor, _description, score]) => {
    const stemmer = new Stemmer();
    const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
    const stems = (text) => words(text).map((word) => stemmer.stemWord(word));
    const query = (new URLSearchParams(location.search).get("q") ?? "").trim();
    const asked = stems(query);
    const there = new Set(stems(title.split(" > ")[0]));
    const part = asked.filter((word) => there.has(word)).length / Math.max(asked.length, 1);
    const listed = /^chapters\/(api|appendix|bibliography)/.test(page);
    const isCode = /^[\w.]+$/.test(query) && /[A-Z_.]/.test(query);
    const chapter = parseFloat(title) || 0;
    const isEntry = /^chapters\/api/.test(page) && title.startsWith("mha");
    const named = isEntry && isCode && `.${title}`.endsWith(`.${query}`);
    const second = isEntry && /^mha\.(check|reference)\./.test(title); // exercises, the definition
    const entry = (named ? 30 : 0) - (isEntry && !isCode ? 20 : 0) - (second ? 1 : 0);
    return score + 10 * part - (listed ? 10 : 0) + entry - chapter / 100;
  },
  // What Sphinx has by itself.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
