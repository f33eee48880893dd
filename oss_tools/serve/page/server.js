// The server's addresses: JSON, and streams of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

export class ServerError extends Error {}

/** Keeps the key while the tab lives. */
export const key = {
  get value() { return sessionStorage.getItem("key") ?? ""; },
  set value(text) { sessionStorage.setItem("key", text); },
};

async function request(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  const sent = body === undefined ? { headers, signal } : { method: "POST", headers, signal, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer; is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError("the server wants a key: write it into the settings");
  const said = await response.json().catch(() => null);
  throw new ServerError(message(said) ?? `the server answers with status ${response.status}`);
}

const message = (said) => said?.error?.message ?? (typeof said?.error === "string" ? said.error : undefined);

/** What the server answers to a JSON object, or to a GET without one. */
export async function ask(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** The events of a stream: [name, data], until the server says [DONE] or ends. */
export async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        let name = "message";
        const data = [];
        for (const line of part.split(/\r?\n/)) {
          if (line.startsWith("event:")) name = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        }
        if (!data.length) continue;
        if (data[0] === "[DONE]") return;
        const said = JSON.parse(data.join("\n"));
        if (name === "error" || said.error) throw new ServerError(message(said) ?? said.message ?? "the server reports an error");
        yield [name, said];
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/**
 * One answer of a model to a conversation, as it comes: {reasoning}, {text}, {call: {index, id, name, arguments}}, {finish}, {usage}.
 * Calls come in pieces; pieces of the same index belong together.
 */
export async function* complete(body, signal) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  for await (const [, chunk] of events("v1/chat/completions", wanted, signal)) {
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const delta = choice.delta ?? {};
    const reasoning = delta.reasoning ?? delta.reasoning_content;
    if (reasoning) yield { reasoning };
    if (delta.content) yield { text: delta.content };
    for (const call of delta.tool_calls ?? []) {
      yield { call: { index: call.index ?? 0, id: call.id, name: call.function?.name, arguments: call.function?.arguments ?? "" } };
    }
    if (choice.finish_reason) yield { finish: choice.finish_reason };
  }
}
