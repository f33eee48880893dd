// A conversation as a tree: every edit and every retry is a branch, and nothing that was said is lost.

const LARGEST = 20_000_000; // characters of a file that is imported
const ROLES = new Set(["user", "assistant"]);

/**
 * Turns by number. A turn has its `parent` (0: none), its `role`, and
 * - of a user: `text`;
 * - of an assistant: `rounds`, each {reasoning, text, calls: [{id, name, arguments, result}]}, `stats`, `error`.
 */
export class Conversation {
  constructor() {
    this.turns = new Map();
    this.chosen = new Map(); // parent → the child that is shown
    this.last = 0;
  }

  /** A new turn under `parent`, which is shown from now on. */
  add(parent, turn) {
    const made = { ...turn, id: ++this.last, parent };
    this.turns.set(made.id, made);
    this.chosen.set(parent, made.id);
    return made;
  }

  /** The turns that have the parent of this one, itself among them. */
  siblings(turn) {
    return [...this.turns.values()].filter((other) => other.parent === turn.parent);
  }

  /** Shows the branch before (−1) or behind (1) this turn's; whether there is one. */
  turnTo(turn, step) {
    const all = this.siblings(turn);
    const other = all[all.indexOf(turn) + step];
    if (other) this.chosen.set(turn.parent, other.id);
    return Boolean(other);
  }

  /** The turns that are shown, from the first on; up to `end` and with it, if it is given. */
  path(end) {
    const found = [];
    for (let id = this.chosen.get(0); id; id = this.chosen.get(id)) {
      found.push(this.turns.get(id));
      if (id === end?.id) break;
    }
    return found;
  }

  /** The last turn that is shown. */
  get end() { return this.path().at(-1); }

  toJSON() {
    return { schema: 1, kind: "conversation", turns: [...this.turns.values()], chosen: [...this.chosen] };
  }

  /** A conversation from an exported file's text. Throws an Error that says what is wrong. */
  static read(text) {
    if (text.length > LARGEST) throw new Error("the file is too large for a conversation");
    let raw;
    try { raw = JSON.parse(text); } catch { throw new Error("the file is no JSON"); }
    if (raw?.kind !== "conversation" || raw.schema !== 1 || !Array.isArray(raw.turns)) throw new Error("the file is no exported conversation");
    const made = new Conversation();
    for (const turn of raw.turns) {
      const known = turn?.parent === 0 || made.turns.has(turn?.parent);
      if (!Number.isSafeInteger(turn?.id) || turn.id <= 0 || made.turns.has(turn.id) || !known || !ROLES.has(turn.role)) throw new Error("a turn of the conversation is broken");
      made.turns.set(turn.id, turn.role === "user" ? userTurn(turn) : assistantTurn(turn));
      made.last = Math.max(made.last, turn.id);
      made.chosen.set(turn.parent, turn.id);
    }
    for (const [parent, id] of Array.isArray(raw.chosen) ? raw.chosen : []) {
      if (made.turns.get(id)?.parent === parent) made.chosen.set(parent, id);
    }
    return made;
  }
}

const text = (value) => (typeof value === "string" ? value : "");
const list = (value) => (Array.isArray(value) ? value : []);

function userTurn({ id, parent, text: said }) {
  return { id, parent, role: "user", text: text(said) };
}

function assistantTurn({ id, parent, rounds, stats, error, model }) {
  const calls = (raw) => list(raw).map((call) => ({
    id: text(call?.id), name: text(call?.name), arguments: text(call?.arguments), result: typeof call?.result === "string" ? call.result : undefined,
  }));
  const number = (value) => (Number.isFinite(value) ? value : undefined);
  return {
    id, parent, role: "assistant", model: text(model), error: error ? text(error) : undefined,
    rounds: list(rounds).map((round) => ({ reasoning: text(round?.reasoning), text: text(round?.text), calls: calls(round?.calls) })),
    stats: stats && { first: number(stats.first), rate: number(stats.rate), tokens: number(stats.tokens) },
  };
}

/** The messages of these turns, as /v1/chat/completions wants them. */
export function messages(turns, instructions) {
  const found = instructions ? [{ role: "developer", content: instructions }] : [];
  for (const turn of turns) {
    if (turn.role === "user") { found.push({ role: "user", content: turn.text }); continue; }
    for (const round of turn.rounds) {
      if (!round.text && !round.calls.length) continue; // an answer that was stopped before it began
      const said = { role: "assistant", content: round.text || null };
      if (round.reasoning) said.reasoning = round.reasoning;
      if (round.calls.length) {
        said.tool_calls = round.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
      }
      found.push(said);
      for (const call of round.calls) found.push({ role: "tool", tool_call_id: call.id, content: call.result ?? "(no result)" });
    }
  }
  return found;
}
