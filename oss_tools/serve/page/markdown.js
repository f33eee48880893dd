// Markdown as models write it, into elements. Only text nodes hold what the model says; no image is loaded; addresses are shown.

import { element } from "./dom.js";

const LONGEST = 50_000; // characters of a paragraph in which marks are looked for
const DEEPEST = 6; // marks within marks, lists within lists

/** Shows a growing text in an element: blocks that are finished stay as they are. */
export class Prose {
  constructor(into) {
    this.into = into;
    this.shown = [];
  }

  update(text) {
    const wanted = blocks(text);
    wanted.forEach((block, place) => {
      if (this.shown[place] === block.lines.join("\n")) return;
      const made = render(block);
      const old = this.into.children[place];
      if (old) old.replaceWith(made); else this.into.append(made);
      this.shown[place] = block.lines.join("\n");
    });
    while (this.into.children.length > wanted.length) this.into.lastChild.remove();
    this.shown.length = wanted.length;
  }
}

const FENCE = /^ {0,3}(```+|~~~+) *([^`\s]*)/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(.*)$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

/** The text in blocks: {kind, lines, …}. */
export function blocks(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const found = [];
  for (let at = 0; at < lines.length;) {
    const start = at;
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) { at++; continue; }
    if (fence) {
      const end = (other) => other.trim().startsWith(fence[1]) && !other.trim().replaceAll(fence[1][0], "");
      for (at++; at < lines.length && !end(lines[at]);) at++;
      at++;
      found.push({ kind: "code", lines: lines.slice(start, at), language: fence[2], closed: at <= lines.length });
    } else if (RULE.test(line)) {
      found.push({ kind: "rule", lines: [line] });
      at++;
    } else if (HEADING.test(line)) {
      found.push({ kind: "heading", lines: [line] });
      at++;
    } else if (line.startsWith(">")) {
      while (at < lines.length && lines[at].startsWith(">")) at++;
      found.push({ kind: "quote", lines: lines.slice(start, at) });
    } else if (ITEM.test(line)) {
      while (at < lines.length && (ITEM.test(lines[at]) || /^ {2,}\S/.test(lines[at]) || (!lines[at].trim() && (ITEM.test(lines[at + 1] ?? "") || /^ {2,}\S/.test(lines[at + 1] ?? ""))))) at++;
      found.push({ kind: "list", lines: lines.slice(start, at) });
    } else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      while (at < lines.length && lines[at].includes("|")) at++;
      found.push({ kind: "table", lines: lines.slice(start, at) });
    } else {
      for (at++; at < lines.length && lines[at].trim() && !FENCE.test(lines[at]) && !HEADING.test(lines[at]) && !ITEM.test(lines[at]) && !RULE.test(lines[at]);) at++;
      found.push({ kind: "paragraph", lines: lines.slice(start, at) });
    }
  }
  return found;
}

function render(block, depth = 0) {
  const { kind, lines } = block;
  if (kind === "code") {
    const body = lines.slice(1, block.closed && lines.length > 1 ? -1 : undefined).join("\n");
    return element("pre", { tabindex: "0", "aria-label": block.language ? `Code, ${block.language}` : "Code" }, element("code", {}, body));
  }
  if (kind === "rule") return element("hr");
  if (kind === "heading") {
    const [, marks, title] = HEADING.exec(lines[0]);
    return element(`h${Math.min(marks.length + 2, 5)}`, {}, inline(title.replace(/ +#+ *$/, "")));
  }
  if (kind === "quote") {
    const inner = lines.map((line) => line.replace(/^> ?/, "")).join("\n");
    const nested = depth < DEEPEST ? blocks(inner).map((part) => render(part, depth + 1)) : [inner];
    return element("blockquote", {}, nested);
  }
  if (kind === "list") return list(lines, depth);
  if (kind === "table") return table(lines);
  return element("p", {}, broken(lines.join("\n")));
}

/** A list from its lines; lines that stand further in belong to the item above. */
function list(lines, depth) {
  const [, , mark] = ITEM.exec(lines[0]);
  const margin = ITEM.exec(lines[0])[1].length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= margin + 1) items.push([item[3]]);
    else items.at(-1).push(line);
  }
  const ordered = /\d/.test(mark);
  return element(ordered ? "ol" : "ul", { start: ordered && Number.parseInt(mark, 10) !== 1 ? Number.parseInt(mark, 10) : null },
    items.map(([first, ...rest]) => {
      const inner = rest.map((line) => line.slice(Math.min(line.search(/\S|$/), margin + 2))).join("\n");
      const below = rest.length && depth < DEEPEST ? blocks(inner).map((part) => render(part, depth + 1)) : [inner];
      return element("li", {}, inline(first), below);
    }));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const head = cells(lines[0]);
  const body = lines.slice(2).map((line) => element("tr", {}, cells(line).slice(0, head.length).map((cell) => element("td", {}, inline(cell)))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    element("table", {}, element("thead", {}, element("tr", {}, head.map((cell) => element("th", { scope: "col" }, inline(cell))))), element("tbody", {}, body)));
}

/** A paragraph, whose line breaks are kept. */
function broken(text) {
  return text.split("\n").flatMap((line, place) => [place ? element("br") : null, ...inline(line)]);
}

const MARKS = /`+|\*\*|__|~~|[*_[]|!\[|\\[\\`*_{}[\]()#+.!~|-]|https?:\/\/[^\s<>"'`)\]]+/g;
const TAGS = { "**": "strong", __: "strong", "~~": "s", "*": "em", _: "em" };

/** A line's marks as elements. Closings are looked for with indexOf, so that no text takes long. */
function inline(text, depth = 0) {
  if (text.length > LONGEST || depth > DEEPEST) return [text];
  const found = [];
  const missing = new Set();
  let plain = 0;
  const marks = new RegExp(MARKS);
  for (let match = marks.exec(text); match; match = marks.exec(text)) {
    const at = match.index;
    const made = marked(text, at, match[0], missing, depth);
    if (!made) continue;
    found.push(text.slice(plain, at), made.node);
    plain = marks.lastIndex = made.end;
  }
  found.push(text.slice(plain));
  return found.filter((part) => part !== "");
}

function marked(text, at, mark, missing, depth) {
  if (mark[0] === "\\") return { node: mark[1], end: at + 2 };
  if (mark.startsWith("http")) {
    const address = mark.replace(/[.,;:!?]+$/, "");
    return { node: link(address, [address]), end: at + address.length };
  }
  const from = at + mark.length;
  if (mark.endsWith("[")) {
    const middle = text.indexOf("](", from);
    const end = middle < 0 ? -1 : text.indexOf(")", middle);
    if (end < 0) return null;
    const address = text.slice(middle + 2, end).trim().split(/\s/)[0];
    const label = text.slice(from, middle);
    if (label.includes("[") || !/^https?:\/\/\S+$/.test(address)) return null;
    const shown = mark === "![" ? [`picture: ${label}`] : inline(label, depth + 1);
    return { node: link(address, shown), end: end + 1 };
  }
  if (missing.has(mark)) return null;
  const end = text.indexOf(mark, from);
  if (end < 0) { missing.add(mark); return null; }
  const inner = text.slice(from, end);
  if (mark[0] === "`") return { node: element("code", {}, inner.trim() || inner), end: end + mark.length };
  const within = mark[0] === "_" && (/\w/.test(text[at - 1] ?? "") || /\w/.test(text[end + mark.length] ?? ""));
  if (!inner || /^\s|\s$/.test(inner) || within) return null;
  return { node: element(TAGS[mark], {}, inline(inner, depth + 1)), end: end + mark.length };
}

/** A link that says where it leads: a model's words cannot hide the address. */
function link(address, shown) {
  const plain = shown.length === 1 && shown[0] === address;
  const made = element("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" }, shown);
  return plain ? made : element("span", {}, made, element("small", {}, ` (${address})`));
}
