// Measures the built pages with Lighthouse, desktop preset; `make audit` runs this after the build.
//
//     node .ci/audit.mjs                         every page below _build/html/chapters
//     node .ci/audit.mjs chapters/04-2-scores    these pages only
//
// The pages come from a server of this script on localhost, gzipped, as hosts send them. A page that
// misses a bar is measured twice more, and the median of the three runs counts. The report, with what
// was found on each page, is _build/audit/report.md and report.json. Exit status 1: a page misses a
// bar; 2: nothing could be measured. AUDIT_SITE names another folder of pages than _build/html.
import { createServer } from "node:http";
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { dirname, extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { launch } from "chrome-launcher";
import lighthouse, { desktopConfig } from "lighthouse";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const SITE = process.env.AUDIT_SITE || join(ROOT, "_build/html");
const REPORT = join(ROOT, "_build/audit");
const BARS = { performance: 0.95, accessibility: 1, "best-practices": 1, seo: 1 };
const TYPES = {
  ".css": "text/css", ".html": "text/html", ".ico": "image/x-icon", ".js": "text/javascript",
  ".json": "application/json", ".mjs": "text/javascript", ".png": "image/png",
  ".svg": "image/svg+xml", ".txt": "text/plain", ".woff": "font/woff", ".woff2": "font/woff2",
};
const PACKED = new Set([".png", ".woff", ".woff2"]); // compressed already

/** Answers one request with a file of the site, or with 404. */
function serve(request, response) {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  const file = join(SITE, path);
  if (!file.startsWith(SITE + sep) || !existsSync(file) || !statSync(file).isFile()) {
    response.writeHead(404).end();
    return;
  }
  const kind = extname(file);
  const type = TYPES[kind] || "application/octet-stream";
  const text = /^text|json|svg/.test(type);
  const headers = {
    "content-type": text ? `${type}; charset=utf-8` : type,
    "cache-control": "max-age=600",
    vary: "accept-encoding",
  };
  const zip = !PACKED.has(kind) && /\bgzip\b/.test(request.headers["accept-encoding"] || "");
  const body = readFileSync(file);
  if (zip) headers["content-encoding"] = "gzip";
  response.writeHead(200, headers).end(zip ? gzipSync(body) : body);
}

/** The pages to measure, as paths below the site without a suffix. */
function pages(wanted) {
  if (wanted.length) return wanted.map((name) => name.replace(/\.(html|ipynb|md)$/, ""));
  const names = readdirSync(join(SITE, "chapters")).filter((name) => name.endsWith(".html"));
  return names.sort().map((name) => `chapters/${name.slice(0, -5)}`);
}

/** One run of Lighthouse: scores, what cost points, its version and its throttling. */
async function measure(url, port) {
  const options = { port, onlyCategories: Object.keys(BARS), logLevel: "error" };
  const { lhr } = await lighthouse(url, options, desktopConfig);
  if (lhr.runtimeError) throw new Error(`${url}: ${lhr.runtimeError.message}`);
  const scores = {};
  const faults = [];
  for (const [name, { score, auditRefs }] of Object.entries(lhr.categories)) {
    scores[name] = score ?? 0;
    for (const { id, weight } of auditRefs) {
      const audit = lhr.audits[id];
      if (weight > 0 && audit.score !== null && audit.score < 1) {
        const items = (audit.details?.items || []).slice(0, 5);
        const where = items.map((item) => item.node?.snippet || item.url || item.description || "");
        faults.push({ category: name, id, score: audit.score, title: audit.title, shown: audit.displayValue || "", where });
      }
    }
  }
  const bytes = lhr.audits["total-byte-weight"]?.numericValue || 0;
  const { lighthouseVersion: version, configSettings, environment } = lhr;
  const { throttlingMethod: method, throttling } = configSettings;
  return { scores, faults, bytes, version, throttling: { method, ...throttling }, browser: environment.hostUserAgent };
}

const misses = ({ scores }) => Object.keys(BARS).filter((name) => scores[name] < BARS[name]);

/** A page in one run, or in the median of three where the first misses a bar. */
async function settled(url, port) {
  const runs = [await measure(url, port)];
  if (misses(runs[0]).length) runs.push(await measure(url, port), await measure(url, port));
  const result = { ...runs[0], runs: runs.length, scores: {} };
  for (const name of Object.keys(BARS)) {
    const sorted = runs.map((run) => run.scores[name]).sort((a, b) => a - b);
    result.scores[name] = sorted[Math.floor(sorted.length / 2)];
  }
  return result;
}

/** What the numbers depend on. */
function provenance({ version, throttling, browser }) {
  const processors = cpus();
  const memory = Math.round(totalmem() / 2 ** 30);
  const { rttMs, throughputKbps, cpuSlowdownMultiplier: slower } = throttling;
  return {
    date: new Date().toISOString().slice(0, 10),
    machine: `${processors[0].model.trim()}, ${processors.length} cores, ${memory} GiB`,
    lighthouse: version,
    browser: (browser.match(/Chrom\w*\/[\d.]+/) || ["?"])[0],
    node: process.versions.node,
    preset: "desktop",
    throttling: `${throttling.method}: ${rttMs} ms round trip, ${throughputKbps} kbit/s, processor slowed ${slower} times`,
  };
}

/** The report as a table, then what each page lost points for. */
function table(facts, results) {
  const names = Object.keys(BARS);
  const lines = ["# Lighthouse on localhost", ""];
  for (const [name, value] of Object.entries(facts)) lines.push(`- ${name}: ${value}`);
  lines.push(`- bars: ${names.map((name) => `${name} ${BARS[name].toFixed(2)}`).join(", ")}`, "");
  lines.push(`| page | ${names.join(" | ")} | KiB sent | runs |`, `|---|${"---:|".repeat(names.length + 2)}`);
  for (const { page, scores, bytes, runs } of results) {
    const cells = names.map((name) => scores[name].toFixed(2) + (scores[name] < BARS[name] ? " ✗" : ""));
    lines.push(`| ${page} | ${cells.join(" | ")} | ${Math.round(bytes / 1024)} | ${runs} |`);
  }
  lines.push("", "## What cost points", "");
  for (const { page, faults } of results) {
    for (const { id, score, title, shown, where } of faults) {
      const places = where.filter(Boolean).map((place) => `\`${place.replaceAll("`", "'")}\``).join(", ");
      lines.push(`- ${page}: ${id} ${score.toFixed(2)}, ${title} ${shown} ${places}`.trimEnd());
    }
  }
  return `${lines.join("\n")}\n`;
}

async function main() {
  const names = pages(process.argv.slice(2));
  const missing = names.filter((name) => !existsSync(join(SITE, `${name}.html`)));
  if (missing.length) throw new Error(`no such page: ${missing.join(", ")}`);
  const server = createServer(serve).listen(0, "127.0.0.1");
  await new Promise((ready) => server.once("listening", ready));
  // Chromium's sandbox refuses to work for root, as in a container.
  const chromeFlags = ["--headless=new", ...(process.getuid?.() === 0 ? ["--no-sandbox"] : [])];
  const chrome = await launch({ chromeFlags });
  const results = [];
  try {
    for (const page of names) {
      const url = `http://localhost:${server.address().port}/${page}.html`;
      const result = { page, ...(await settled(url, chrome.port)) };
      results.push(result);
      const scores = Object.values(result.scores).map((score) => score.toFixed(2)).join("  ");
      console.log(`${scores}  ${page}${misses(result).length ? "  below the bar" : ""}`);
    }
  } finally {
    chrome.kill();
    server.close();
  }
  const facts = provenance(results[0]);
  mkdirSync(REPORT, { recursive: true });
  writeFileSync(join(REPORT, "report.md"), table(facts, results));
  const plain = results.map(({ page, scores, bytes, runs, faults }) => ({ page, scores, bytes, runs, faults }));
  writeFileSync(join(REPORT, "report.json"), `${JSON.stringify({ ...facts, bars: BARS, pages: plain }, null, 1)}\n`);
  const low = results.filter((result) => misses(result).length).length;
  console.log(`${results.length} pages measured, ${low} below a bar; see _build/audit/report.md`);
  return low ? 1 : 0;
}

main().then(
  (status) => process.exit(status),
  (error) => {
    console.error(`No measurement: ${error.message}`);
    process.exit(2);
  },
);
