// One of two answers: its tokens coloured by divergence, a strip of all of them, the sums.

import { drawn, element, figure, time } from "./dom.js";

/** Where the levels of colour begin, in nats of KL divergence. */
export const STEPS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3];
export const level = (kld) => STEPS.filter((step) => kld >= step).length;
const HEIGHT = 40;
const WHITE = { " ": "space" };
const CHANNELS = { analysis: "reasoning", commentary: "a call", final: "the answer" };

export class AnswerView {
  /** `select` is told of the token that the user points at. */
  constructor(name, select) {
    this.name = name;
    this.select = select;
    this.tokens = []; // {id, text, channel, special, kld, logprob, other_logprob, top, other_top, node}
    this.current = -1;
    this.stats = element("p", { class: "stats" }, "");
    this.strip = drawn("svg", { class: "strip", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.list = element("div", { class: "tokens", role: "listbox", tabindex: "0", "aria-label": `Tokens of ${name}` });
    this.sums = element("dl", { class: "sums", hidden: true });
    this.node = element("section", { class: "pane", "aria-label": name }, element("header", {}, element("h2", {}, name), this.stats), this.strip, this.list, this.sums);
    this.list.addEventListener("click", (event) => this.point(event.target.closest(".token")));
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.strip.addEventListener("click", (event) => {
      const box = this.strip.getBoundingClientRect();
      this.go(Math.floor(((event.clientX - box.left) / box.width) * this.tokens.length));
    });
  }

  add(token) {
    const kind = token.channel ?? "header";
    if (this.run?.kind !== kind) {
      this.run = { kind, node: element("div", { class: `run ${CHANNELS[kind] ? kind : "header"}`, role: "group", "aria-label": CHANNELS[kind] ?? "marks" }) };
      this.list.append(this.run.node);
    }
    const text = token.text.replaceAll("\n", "↵\n") || "␀";
    const node = element("span", { class: token.special ? "token special" : "token", role: "option", "aria-selected": "false", "aria-label": text.trim() ? null : WHITE[text] ?? "white space" }, text);
    node.dataset.index = this.tokens.length;
    this.tokens.push({ ...token, node });
    this.run.node.append(node);
  }

  /** The divergences of tokens from `start` on. */
  measure({ start, kld, logprob, other_logprob, top, other_top }) {
    kld.forEach((value, place) => {
      const token = this.tokens[start + place];
      if (!token) return;
      Object.assign(token, { kld: value, logprob: logprob[place], other_logprob: other_logprob[place], top: top[place], other_top: other_top[place] });
      token.node.classList.add(`k${level(value)}`);
    });
    this.draw();
  }

  /** The strip: a bar for every token, as high as its divergence is of many steps. */
  draw() {
    const count = Math.max(this.tokens.length, 1);
    const high = (kld) => (kld >= STEPS[0] ? Math.min((Math.log10(kld / STEPS[0]) + 0.35) / 4.35, 1) * (HEIGHT - 2) : 0);
    this.strip.setAttribute("viewBox", `0 0 ${count} ${HEIGHT}`);
    const parts = [];
    if (this.current >= 0) parts.push(drawn("rect", { class: "here", x: this.current, y: 0, width: Math.max(1, count / 200), height: HEIGHT }));
    parts.push(drawn("line", { class: "base", x1: 0, x2: count, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }));
    this.tokens.forEach((token, place) => {
      const size = high(token.kld ?? 0);
      if (size) parts.push(drawn("rect", { class: "bar", x: place + 0.08, y: HEIGHT - size, width: 0.84, height: size }));
    });
    if (this.fork !== undefined) parts.push(drawn("line", { class: "fork", x1: this.fork, x2: this.fork, y1: 0, y2: HEIGHT }));
    this.strip.replaceChildren(...parts);
  }

  /** Marks the first token that is not the other's. */
  part(place) {
    this.fork = place;
    this.tokens[place]?.node.classList.add("forked");
    this.draw();
  }

  end({ tokens, seconds, time_to_first_token: first, finish }) {
    const rate = tokens > 1 && seconds > first ? `${figure((tokens - 1) / (seconds - first))} tokens/s` : null;
    this.stats.textContent = [rate, `first token ${time(first)}`, `${tokens} tokens`, finish === "length" ? "cut off" : null].filter(Boolean).join(" · ");
  }

  sum({ kld_sum, kld_mean, kld_max, same_top }) {
    const row = (what, value, about) => element("div", { title: about }, element("dt", {}, what), element("dd", {}, value));
    this.sums.replaceChildren(
      row("KL, sum", `${figure(kld_sum)} nats`, "Of all tokens of this answer: how far the other model's distribution is from this one's"),
      row("per token", figure(kld_mean), "The mean"), row("largest", figure(kld_max), "At one token"),
      row("same likeliest", `${figure(100 * same_top)} %`, "Tokens at which both hold the same one likeliest"));
    this.sums.hidden = false;
  }

  point(node) {
    if (node) this.go(Number(node.dataset.index));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.go(Math.min(Math.max(this.current + step, 0), this.tokens.length - 1));
  }

  /** Points at a token; tells of it unless the other answer led here. */
  go(place, told = true) {
    const token = this.tokens[place];
    if (!token) return;
    this.clear();
    this.current = place;
    token.node.setAttribute("aria-selected", "true");
    token.node.id = `token-${this.name.replaceAll(/\W/g, "-")}-${place}`;
    this.list.setAttribute("aria-activedescendant", token.node.id);
    this.draw();
    if (told) { token.node.scrollIntoView({ block: "nearest" }); this.select(this, place); }
  }

  clear() {
    const old = this.tokens[this.current]?.node;
    old?.setAttribute("aria-selected", "false");
    old?.removeAttribute("id");
    this.list.removeAttribute("aria-activedescendant");
    this.current = -1;
  }
}
