// The page: asks the server what it has, wires fields and keys to the chat and the view of two models.

import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { byId, element, notify } from "./dom.js";
import { ask } from "./server.js";
import * as settings from "./settings.js";

const KEYS = [
  ["Enter", "send"], ["Shift Enter", "a new line"], ["Esc", "stop"], ["/", "write"], ["r", "answer again"], ["e", "edit the last question"],
  ["[ and ]", "the branch before, the next"], ["w", "raw text"], ["c", "copy the answer"], ["n", "new conversation"], [",", "settings"],
  ["1 and 2", "chat, side by side"], ["← and →", "side by side: the token before, the next"], ["?", "this list"],
];
const SUGGESTIONS = ["What is 17 + 26?", "Explain what a quantized weight is, in three sentences.", "Write a table of the SI prefixes from nano to giga."];

settings.prepare();
byId("key-list").append(...KEYS.flatMap(([keys, what]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, what)]));

let facts = { models: [], tools: [] };
try {
  facts = await ask("playground/models");
} catch (error) {
  notify(error.message);
  if (error.message.includes("key")) byId("settings").showModal();
}
const byName = new Map(facts.models.map((model) => [model.name, model]));
const talking = facts.models.filter((model) => model.efforts.length);

const compare = new Compare(byId("compare"), facts, () => settings.sampling());
const chat = new Chat(facts, (messages) => { view("compare"); compare.take(messages); });

function view(name) {
  for (const other of ["chat", "compare"]) {
    byId(other).hidden = other !== name;
    byId(`show-${other}`).setAttribute("aria-pressed", String(other === name));
  }
  byId("composer").hidden = name !== "chat";
  byId("main").scrollTo(0, 0);
}

function choose() {
  const model = byName.get(byId("model").value);
  if (!model) return;
  const before = byId("effort").value || "medium";
  byId("effort").replaceChildren(...model.efforts.map((effort) => element("option", {}, effort)));
  byId("effort").value = model.efforts.includes(before) ? before : model.efforts.at(-1);
  byId("welcome-name").textContent = model.name;
  byId("welcome-facts").textContent = [model.about, `${model.context.toLocaleString("en")} positions of context`].filter(Boolean).join(" · ");
}

byId("model").replaceChildren(...talking.map((model) => element("option", { value: model.name }, model.name)));
byId("model").addEventListener("change", choose);
choose();
settings.offerTools(facts.tools);
byId("suggestions").append(...SUGGESTIONS.map((text) => element("button", { type: "button", onclick: () => chat.send(text) }, text)));
chat.restore();

const prompt = byId("prompt");
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.busy) { chat.stop(); return; }
  const { value } = prompt;
  prompt.value = "";
  chat.send(value);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!chat.busy) byId("composer").requestSubmit();
});
byId("show-chat").addEventListener("click", () => view("chat"));
byId("show-compare").addEventListener("click", () => view("compare"));
byId("new").addEventListener("click", () => { view("chat"); chat.begin(); prompt.focus(); });
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("export").addEventListener("click", () => chat.export());
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async ({ target }) => {
  if (target.files[0]) await chat.import(target.files[0]);
  target.value = "";
  byId("settings").close();
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

const last = (role) => chat.conversation.path().filter((turn) => turn.role === role).at(-1);
const ACTS = {
  "/": () => (byId("composer").hidden ? compare.focus() : prompt.focus()),
  r: () => last("assistant") && chat.retry(last("assistant")),
  e: () => last("user") && chat.edit(last("user")),
  "[": () => branch(-1),
  "]": () => branch(1),
  w: () => last("assistant") && chat.raw(last("assistant")),
  c: () => last("assistant") && navigator.clipboard?.writeText(last("assistant").rounds.map((round) => round.text).join("\n\n")),
  n: () => byId("new").click(),
  ",": () => byId("settings").showModal(),
  1: () => view("chat"),
  2: () => view("compare"),
  "?": () => byId("keys").showModal(),
};

function branch(by) {
  const path = chat.conversation.path().reverse();
  const turn = path.find((one) => chat.conversation.siblings(one).length > 1);
  if (turn) chat.does.go(turn, by);
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") { chat.stop(); compare.stop(); return; }
  const writing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (writing || event.ctrlKey || event.metaKey || event.altKey || !ACTS[event.key]) return;
  event.preventDefault();
  ACTS[event.key]();
});

if (matchMedia("(min-width: 700px)").matches) prompt.focus();
document.body.dataset.ready = "";
