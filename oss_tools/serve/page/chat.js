// The chat: asks, shows what comes, carries calls out by way of the server, goes on.

import { Conversation, messages } from "./conversation.js";
import { announce, byId, notify, save } from "./dom.js";
import { ask, complete } from "./server.js";
import * as settings from "./settings.js";
import { AssistantTurn, editor, showRaw, userTurn } from "./turns.js";

const ROUNDS = 8; // of calls in one turn

export class Chat {
  /** `facts`: the server's models by name, with their tools; `compare`: shows a conversation side by side. */
  constructor(facts, compare) {
    this.facts = facts;
    this.compare = compare;
    this.conversation = new Conversation();
    this.busy = null;
    this.does = {
      go: (turn, by) => { if (!this.busy && this.conversation.turnTo(turn, by)) this.show(); },
      edit: (turn) => this.edit(turn),
      retry: (turn) => this.retry(turn),
      raw: (turn) => this.raw(turn),
      compare: (turn) => this.compare(messages(this.conversation.path(turn).slice(0, -1), settings.instructions())),
      result: (turn, call, text) => this.result(turn, call, text),
    };
  }

  get model() { return byId("model").value; }

  show() {
    const path = this.conversation.path();
    byId("welcome").hidden = path.length > 0;
    byId("messages").replaceChildren(...path.map((turn) => {
      const all = this.conversation.siblings(turn);
      if (turn.role === "user") return userTurn(turn, all, this.does);
      const view = new AssistantTurn(turn, this.does);
      view.end(all);
      return view.node;
    }));
    this.keep();
  }

  keep() {
    try { sessionStorage.setItem("conversation", JSON.stringify(this.conversation)); } catch { /* the tab's store is full: the page itself still has it */ }
  }

  restore() {
    const kept = sessionStorage.getItem("conversation");
    if (kept) try { this.conversation = Conversation.read(kept); } catch { sessionStorage.removeItem("conversation"); }
    this.show();
  }

  begin() {
    this.stop();
    this.conversation = new Conversation();
    this.show();
  }

  stop() { this.busy?.abort(); }

  /** Asks in the branch that is shown, or beside another question. */
  async send(text, beside) {
    if (this.busy || !text.trim()) return;
    const parent = beside ? beside.parent : this.conversation.end?.id ?? 0;
    const turn = this.conversation.add(parent, { role: "user", text: text.trim() });
    await this.answer(turn.id);
  }

  edit(turn) {
    if (this.busy) return;
    const node = document.querySelector(`[data-turn="${turn.id}"]`);
    const { form, field } = editor(turn, (text) => this.send(text, turn), () => this.show());
    node.replaceChildren(form);
    field.focus();
  }

  async retry(turn) {
    if (!this.busy) await this.answer(turn.parent);
  }

  /** A new turn of the assistant under this one. */
  async answer(parent) {
    const turn = this.conversation.add(parent, { role: "assistant", model: this.model, rounds: [] });
    await this.goOn(turn);
  }

  async result(turn, call, text) {
    call.result = text;
    if (turn.rounds.at(-1).calls.every((one) => one.result !== undefined)) await this.goOn(turn);
    else this.show();
  }

  /** Asks the model until it answers, carrying its calls out in between. */
  async goOn(turn) {
    const own = settings.functions();
    if (own === null) { byId("settings").showModal(); return; }
    this.show();
    this.busy = new AbortController();
    document.body.dataset.busy = "";
    byId("send").textContent = "Stop";
    const all = this.conversation.siblings(turn);
    const view = new AssistantTurn(turn, this.does);
    document.querySelector(`[data-turn="${turn.id}"]`).replaceWith(view.node);
    turn.error = undefined;
    try {
      for (let count = 0; ; count++) {
        if (count === ROUNDS) throw new Error(`no answer after ${ROUNDS} rounds of calls`);
        const round = await this.round(turn, view, own);
        if (!round.calls.length || !await this.carryOut(round, own, view)) break;
      }
    } catch (error) {
      turn.error = error.name === "AbortError" ? "stopped" : error.message;
    } finally {
      this.busy = null;
      delete document.body.dataset.busy;
      byId("send").textContent = "Send";
      view.end(all);
      this.keep();
      announce(turn.error ?? "The answer is complete.");
    }
  }

  async round(turn, view, own) {
    const round = { reasoning: "", text: "", calls: [] };
    const wanted = this.request(turn, own);
    turn.rounds.push(round);
    const began = performance.now();
    let first, last, pieces = 0, drawing = 0, usage;
    const draw = () => { drawing = 0; const low = atEnd(); view.update(true); if (low) toEnd(); };
    draw();
    toEnd();
    try {
      for await (const piece of complete(wanted, this.busy.signal)) {
        if (piece.usage) { usage = piece.usage; continue; }
        if (piece.finish) { if (piece.finish === "length") turn.error = "the answer was cut off: it reached the most tokens"; continue; }
        last = performance.now();
        first ??= last;
        pieces++;
        if (piece.reasoning) round.reasoning += piece.reasoning;
        if (piece.text) round.text += piece.text;
        if (piece.call) {
          const { index, ...part } = piece.call;
          const call = (round.calls[index] ??= { id: part.id ?? `call_${index}`, name: "", arguments: "" });
          call.name ||= part.name ?? "";
          call.arguments += part.arguments;
        }
        drawing ||= requestAnimationFrame(draw);
      }
    } finally {
      cancelAnimationFrame(drawing);
      round.calls = round.calls.filter(Boolean);
      const tokens = usage?.completion_tokens ?? pieces;
      const before = turn.stats ?? { tokens: 0 };
      turn.stats = {
        first: before.first ?? (first === undefined ? undefined : (first - began) / 1000),
        rate: tokens > 1 && last > first ? (tokens - 1) / ((last - first) / 1000) : before.rate,
        tokens: before.tokens + tokens,
      };
    }
    return round;
  }

  request(turn, own) {
    const offered = this.facts.tools.filter((tool) => settings.chosenTools().includes(tool.name));
    const tools = [...offered, ...own].map((schema) => ({ type: "function", function: schema }));
    return {
      model: this.model, messages: messages(this.conversation.path(turn), settings.instructions()), ...settings.sampling(),
      tools: tools.length ? tools : undefined,
    };
  }

  /** Whether every call of a round has a result now; those of the user's own functions wait for him. */
  async carryOut(round, own, view) {
    for (const call of round.calls) {
      if (own.some((schema) => schema.name === call.name)) { call.asked = true; continue; }
      const { result } = await ask("playground/tool", { name: call.name, arguments: call.arguments }, this.busy.signal);
      call.result = result;
      view.update(true);
    }
    return round.calls.every((call) => call.result !== undefined);
  }

  async raw(turn) {
    const own = settings.functions() ?? [];
    const { model, messages: said, tools, reasoning_effort } = this.request(turn, own);
    try {
      showRaw(await ask("playground/render", { model, messages: said, tools, reasoning_effort }));
    } catch (error) { notify(error.message); }
  }

  export() {
    const { instructions } = settings;
    save("conversation.json", { ...this.conversation.toJSON(), model: this.model, settings: { ...settings.sampling(), instructions: instructions() } });
  }

  async import(file) {
    try {
      this.conversation = Conversation.read(await file.text());
      this.show();
    } catch (error) { notify(`${file.name}: ${error.message}`); }
  }
}

const atEnd = () => { const { scrollTop, clientHeight, scrollHeight } = byId("main"); return scrollHeight - scrollTop - clientHeight < 90; };
const toEnd = () => byId("main").scrollTo(0, byId("main").scrollHeight);
