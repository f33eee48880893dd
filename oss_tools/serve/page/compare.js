// Two quantizations side by side: one conversation, one seed, both answers, where they part, and what every token cost.

import { AnswerView, STEPS } from "./answer_view.js";
import { announce, element, figure, notify, save } from "./dom.js";
import { events } from "./server.js";

export class Compare {
  /** `into`: the section; `sampling`: gives the fields of a request. */
  constructor(into, facts, sampling) {
    this.sampling = sampling;
    this.before = [];
    const names = facts.models.filter((model) => model.efforts.length).map((model) => model.name);
    if (names.length < 2) { into.append(lonely(names)); return; }
    const choice = (place) => element("select", {}, names.map((name, at) => element("option", { value: name, selected: at === place }, name)));
    this.choices = [choice(0), choice(1)];
    this.field = element("textarea", { rows: "1", placeholder: "One question, two models, the same seed", "aria-label": "Question to both models", id: "both" });
    this.button = element("button", { type: "submit", class: "go", id: "run-both" }, "Compare");
    this.earlier = element("p", { class: "before", hidden: true });
    const form = element("form", { class: "ask", "aria-label": "Question to both models" },
      element("div", { class: "pair" }, element("label", {}, "Model A", this.choices[0]), element("label", {}, "Model B", this.choices[1])),
      this.earlier, element("div", { class: "field" }, this.field, this.button));
    form.addEventListener("submit", (event) => { event.preventDefault(); if (this.busy) this.stop(); else this.run(); });
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
    });
    this.parted = element("p", { class: "parted", id: "parted", role: "status" });
    this.panes = element("div", { class: "panes" });
    this.legend = element("div", { class: "legend", hidden: true });
    this.detail = element("div", { class: "detail", hidden: true, "aria-live": "polite" });
    into.append(form, this.parted, this.panes, this.legend, this.detail);
  }

  focus() { this.field?.focus(); }
  stop() { this.busy?.abort(); }

  /** A conversation from the chat, whose last question is asked again. */
  take(messages) {
    if (!this.field) return;
    this.before = messages.slice(0, -1);
    this.field.value = messages.at(-1).content;
    const drop = element("button", { type: "button", onclick: () => { this.before = []; this.earlier.hidden = true; } }, "without them");
    this.earlier.replaceChildren(`After ${this.before.length} earlier message${this.before.length === 1 ? "" : "s"} of the chat; ask `, drop);
    this.earlier.hidden = !this.before.length;
    this.focus();
  }

  async run() {
    const question = this.field.value.trim();
    const models = this.choices.map((choice) => choice.value);
    if (!question) return;
    if (models[0] === models[1]) { notify("choose two different models"); return; }
    const select = (view, place) => this.select(view, place);
    this.views = models.map((name) => new AnswerView(name, select));
    this.panes.replaceChildren(...this.views.map((view) => view.node));
    this.parted.replaceChildren();
    this.fork = undefined;
    this.legend.hidden = this.detail.hidden = true;
    this.busy = new AbortController();
    this.button.textContent = "Stop";
    const seed = this.sampling().seed ?? Math.floor(Math.random() * 2 ** 31);
    const wanted = { models, messages: [...this.before, { role: "user", content: question }], ...this.sampling(), seed };
    try {
      for await (const [name, said] of events("playground/compare", wanted, this.busy.signal)) this.hear(name, said);
    } catch (error) {
      if (error.name !== "AbortError") notify(error.message);
    } finally {
      this.busy = undefined;
      this.button.textContent = "Compare";
    }
  }

  hear(name, said) {
    const view = this.views[said.side];
    if (name === "token") { view.add(said); this.lookForFork(); }
    if (name === "answer") view.end(said);
    if (name === "divergence") view.measure(said);
    if (name === "sums") view.sum(said);
    if (name === "case") this.end(said);
  }

  /** The first token at which the answers differ, as soon as both have it. */
  lookForFork() {
    if (this.fork !== undefined) return;
    const [one, two] = this.views.map((view) => view.tokens);
    const place = Math.min(one.length, two.length) - 1;
    if (place < 0 || one[place].id === two[place].id) return;
    this.fork = place;
    for (const view of this.views) view.part(place);
  }

  end(record) {
    const [one, two] = this.views;
    const place = record.parted;
    if (place === null) {
      this.parted.replaceChildren(`Both models give the same ${one.tokens.length} tokens.`);
    } else {
      const quoted = (token) => element("q", {}, token ? token.text || "␀" : "nothing more");
      const odds = (token) => (token?.kld === undefined ? "" : ` (${share(token.logprob)} here, ${share(token.other_logprob)} there)`);
      const [first, second] = [one.tokens[place], two.tokens[place]];
      if (place < Math.max(one.tokens.length, two.tokens.length)) for (const view of this.views) view.part(place);
      this.parted.replaceChildren(
        place ? `The same ${place} token${place === 1 ? "" : "s"}, then ` : "From the first token on, ",
        `${one.name} says `, quoted(first), element("small", {}, odds(first)), ` and ${two.name} `, quoted(second), element("small", {}, odds(second)), ".");
    }
    const scale = ["0", ...STEPS.map(String)].map((from, at) => element("span", { class: `k${at}` }, from));
    const button = element("button", { type: "button", class: "plain", id: "save-case", onclick: () => save("side-by-side.json", record) }, "Make a case for the report");
    this.legend.replaceChildren(element("span", {}, "KL divergence under the other model, nats"), element("span", { class: "scale" }, scale), element("span", {}, `seed ${record.sampling.seed}`), button);
    this.legend.hidden = false;
    announce(this.parted.textContent);
    if (matchMedia("(min-width: 801px)").matches) this.views[0].go(place === null ? 0 : Math.min(place, one.tokens.length - 1));
  }

  /** Shows a token's figures, and its twin in the other answer while both are the same. */
  select(view, place) {
    const other = this.views.find((one) => one !== view);
    other.clear();
    other.draw();
    for (const node of this.panes.querySelectorAll(".twin")) node.classList.remove("twin");
    if (this.fork === undefined || place <= this.fork) other.tokens[place]?.node.classList.add("twin");
    const token = view.tokens[place];
    if (token.kld === undefined) return;
    const table = (name, rows) => element("table", {}, element("caption", {}, name), element("tbody", {},
      rows.map(([text, p, id]) => element("tr", { class: id === token.id ? "came" : null }, element("th", { scope: "row" }, visible(text)), element("td", {}, share(Math.log(p)))))));
    this.detail.replaceChildren(
      element("div", {}, element("button", { type: "button", "aria-label": "Close", onclick: () => { this.detail.hidden = true; } }, "✕"), element("b", {}, visible(token.text)),
        element("p", {}, `token ${place + 1} of ${view.tokens.length}, number ${token.id}`),
        element("p", {}, `KL ${figure(token.kld)} nats; ${view.name} gave it ${share(token.logprob)}, ${other.name} ${share(token.other_logprob)}`)),
      table(view.name, token.top), table(other.name, token.other_top));
    this.detail.hidden = false;
  }
}

const share = (logprob) => `${figure(100 * Math.exp(logprob))} %`;
const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "·") || "␀";

function lonely(names) {
  const name = names[0] ?? "MODEL";
  return element("div", { class: "lonely" }, element("h2", {}, "Two models are needed"),
    element("p", {}, "Side by side, two quantizations of one model answer the same question from the same seed, and every token shows what the other one thinks of it."),
    element("p", {}, "Start the server with both: ", element("code", {}, `oss-tools serve ${name} OTHER`)));
}
