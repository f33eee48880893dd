// How turns look: what a person said, what the model thought, called and answered.

import { byId, element, figure, time } from "./dom.js";
import { Prose } from "./markdown.js";

/** A button among a turn's acts. */
const act = (word, title, onclick) => element("button", { type: "button", title, onclick }, word);

/** Which of several branches this is, with a step to each side. */
function branches(all, turn, go) {
  if (all.length < 2) return null;
  const place = all.indexOf(turn);
  const step = (by, sign, word) => element("button", { type: "button", "aria-label": word, disabled: !all[place + by], onclick: () => go(turn, by) }, sign);
  return element("span", { class: "branch" }, step(-1, "‹", "The branch before"), ` ${place + 1}/${all.length} `, step(1, "›", "The next branch"));
}

/** A user's turn. `does`: edit, go. */
export function userTurn(turn, all, does) {
  return element("li", { class: "turn user", "data-turn": turn.id },
    element("h2", { class: "hidden" }, "You"),
    element("div", { class: "said" }, turn.text),
    element("div", { class: "acts" }, branches(all, turn, does.go), act("Edit", "Ask otherwise, in a new branch (e)", () => does.edit(turn))));
}

/** The field in which a turn is written anew. */
export function editor(turn, done, cancel) {
  const field = element("textarea", { "aria-label": "Your message, anew" });
  field.value = turn.text;
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(field.value); }
  });
  const form = element("div", { class: "edit" }, field,
    element("div", { class: "row" }, element("button", { type: "button", onclick: cancel }, "Cancel"), element("button", { type: "button", onclick: () => done(field.value) }, "Ask")));
  return { form, field };
}

/** An assistant's turn, which can grow: `update` shows what came, `end` the figures and what one can do. */
export class AssistantTurn {
  constructor(turn, does) {
    this.turn = turn;
    this.does = does;
    this.rounds = [];
    this.body = element("div");
    this.foot = element("div", { class: "acts" });
    this.node = element("li", { class: "turn assistant", "data-turn": turn.id }, element("h2", { class: "hidden" }, turn.model || "Assistant"), this.body, this.foot);
    this.update();
  }

  update(live = false) {
    this.turn.rounds.forEach((round, place) => {
      this.rounds[place] ??= new Round(this.body, this.does, this.turn);
      this.rounds[place].update(round, live && place === this.turn.rounds.length - 1);
    });
    this.waiting?.remove();
    const last = this.turn.rounds.at(-1);
    if (live && last && !last.text && !last.reasoning && !last.calls.length) {
      this.waiting = element("p", { class: "waiting writing" }, "");
      this.body.append(this.waiting);
    }
  }

  end(all) {
    this.update();
    this.body.querySelector(".broken")?.remove();
    if (this.turn.error) this.body.append(element("p", { class: "broken", role: "alert" }, this.turn.error));
    const { stats } = this.turn;
    const parts = stats ? [
      stats.rate ? `${figure(stats.rate)} tokens/s` : null,
      stats.first !== undefined ? `first token ${time(stats.first)}` : null,
      stats.tokens ? `${stats.tokens} tokens` : null,
    ].filter(Boolean) : [];
    const answer = this.turn.rounds.map((round) => round.text).filter(Boolean).join("\n\n");
    this.foot.replaceChildren(...[
      parts.length ? element("span", { class: "stats" }, parts.join(" · ")) : null,
      branches(all, this.turn, this.does.go),
      answer ? act("Copy", "Copy the answer (c)", () => navigator.clipboard?.writeText(answer)) : null,
      act("Retry", "Answer again, in a new branch (r)", () => this.does.retry(this.turn)),
      act("Raw", "The text that the model reads and writes (w)", () => this.does.raw(this.turn)),
      act("Side by side", "The same question to two models", () => this.does.compare(this.turn)),
    ].filter(Boolean));
  }
}

/** One answer of the model within a turn: its reasoning, its text, its calls. */
class Round {
  constructor(into, does, turn) {
    this.does = does;
    this.turn = turn;
    this.thought = element("div", { class: "thought" });
    this.summary = element("summary", {}, "Reasoning");
    this.fold = element("details", { class: "fold", hidden: true }, this.summary, this.thought);
    this.text = element("div", { class: "prose", hidden: true });
    this.prose = new Prose(this.text);
    this.calls = element("div");
    this.shown = [];
    into.append(this.fold, this.text, this.calls);
  }

  update(round, live) {
    this.fold.hidden = !round.reasoning;
    if (this.thought.textContent !== round.reasoning) this.thought.textContent = round.reasoning;
    const thinking = live && !round.text && !round.calls.length;
    this.summary.textContent = thinking ? "Reasoning …" : `Reasoning, ${round.reasoning.split(/\s+/).filter(Boolean).length} words`;
    this.text.hidden = !round.text;
    this.prose.update(round.text);
    this.text.classList.toggle("writing", live && Boolean(round.text));
    round.calls.forEach((call, place) => {
      const state = `${call.name}\n${call.arguments}\n${call.result}\n${call.asked}`;
      if (this.shown[place] === state) return;
      this.shown[place] = state;
      const made = this.call(call);
      const old = this.calls.children[place];
      if (old) old.replaceWith(made); else this.calls.append(made);
    });
  }

  call(call) {
    const state = call.result !== undefined ? "called" : call.asked ? "waits for your result" : "calls";
    return element("article", { class: "call", "aria-label": `Call of ${call.name}` },
      element("header", {}, element("b", {}, call.name), element("span", {}, state)),
      element("pre", { tabindex: "0", "aria-label": "Arguments" }, pretty(call.arguments)),
      call.result === undefined ? null : element("pre", { class: "result", tabindex: "0", "aria-label": "Result" }, call.result),
      call.result === undefined && call.asked ? this.form(call) : null);
  }

  /** Where the user writes what his own function would return. */
  form(call) {
    const field = element("textarea", { rows: "2", "aria-label": `Result of ${call.name}`, placeholder: "What it returns" });
    const send = (event) => { event.preventDefault(); this.does.result(this.turn, call, field.value); };
    field.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); });
    return element("form", { onsubmit: send }, field, element("div", { class: "row" }, element("button", { type: "submit" }, "Give it to the model")));
  }
}

/** Arguments on several lines, if they are JSON. */
function pretty(text) {
  try {
    const value = JSON.parse(text);
    const keys = Object.keys(value);
    if (keys.length === 1 && typeof value[keys[0]] === "string" && value[keys[0]].includes("\n")) return value[keys[0]];
    return JSON.stringify(value, null, 2);
  } catch { return text; }
}

const ENDS = new Set(["<|end|>", "<|call|>", "<|return|>"]);

/** Shows pieces of a raw text, [text, special], in the dialog. */
export function showRaw({ pieces, tokens }) {
  byId("raw-facts").textContent = `${tokens} tokens. Marked: special tokens, which no text can spell.`;
  byId("raw-text").replaceChildren(...pieces.flatMap(([text, special]) => (special ? [element("b", {}, text), ENDS.has(text) ? element("br") : null] : [text])).filter(Boolean));
  byId("raw").showModal();
}
