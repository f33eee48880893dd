// What the user has set. The look is kept in the browser; what is written (prompts, functions, the key) is gone with the tab.

import { byId, element } from "./dom.js";
import { key } from "./server.js";

const WRITTEN = ["instructions", "temperature", "top_p", "seed", "max_tokens", "stop", "functions"];
const DEFAULTS = { temperature: "1", top_p: "1" };

/** Fills the form from what the tab knows, and keeps what changes. */
export function prepare() {
  for (const id of WRITTEN) {
    const field = byId(id);
    field.value = sessionStorage.getItem(id) ?? DEFAULTS[id] ?? "";
    field.addEventListener("input", () => sessionStorage.setItem(id, field.value));
  }
  byId("key").value = key.value;
  byId("key").addEventListener("change", () => { key.value = byId("key").value.trim(); location.reload(); });
  byId("functions").addEventListener("change", () => { functions(); });
  const theme = localStorage.getItem("theme") ?? "auto";
  for (const choice of document.querySelectorAll("[name=theme]")) {
    choice.checked = choice.value === theme;
    choice.addEventListener("change", () => { localStorage.setItem("theme", choice.value); look(choice.value); });
  }
  look(theme);
}

function look(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Shows the tools that the server carries out, each to be switched on. */
export function offerTools(tools) {
  byId("tools").replaceChildren(...tools.map((tool) => element("label", { class: "choice", title: tool.description },
    element("input", { type: "checkbox", name: "tool", value: tool.name }), tool.name)));
  byId("tools-field").hidden = !tools.length;
}

/** The names of the tools that are switched on. */
export function chosenTools() {
  return [...document.querySelectorAll("[name=tool]:checked")].map((box) => box.value);
}

/** The user's own functions; null if what is written there is none, which the form then says. */
export function functions() {
  const error = byId("functions-error");
  error.hidden = true;
  const written = byId("functions").value.trim();
  if (!written) return [];
  try {
    const raw = JSON.parse(written);
    return (Array.isArray(raw) ? raw : [raw]).map((one) => {
      const schema = one?.function ?? one;
      if (typeof schema?.name !== "string") throw new Error("every function needs a name");
      return schema;
    });
  } catch (problem) {
    error.textContent = `These are no functions: ${problem.message}`;
    error.hidden = false;
    return null;
  }
}

const number = (id) => {
  const value = Number.parseFloat(byId(id).value);
  return Number.isFinite(value) ? value : undefined;
};

/** The fields of a request that say how to answer. */
export function sampling() {
  const stop = byId("stop").value.split("\n").filter(Boolean);
  return {
    temperature: number("temperature"), top_p: number("top_p"), seed: number("seed"), max_completion_tokens: number("max_tokens"),
    stop: stop.length ? stop : undefined, reasoning_effort: byId("effort").value || undefined,
  };
}

export const instructions = () => byId("instructions").value.trim();
