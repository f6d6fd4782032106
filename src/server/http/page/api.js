// The server's HTTP interface, as far as the page uses it.

const KEY = "blockdrop-api-key";

/** What the server, or the way to it, said no with. */
export class Refused extends Error {
  constructor(message, code, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** Sends this API key from now on, for as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = new Headers(options.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refused("The server cannot be reached.", "unreachable");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new Refused(body?.error ?? `The server answered with ${response.status}.`, body?.code, response.status);
}

/** All models, each with its blocks, FLOPs and threshold. */
export async function models() {
  return (await ask("v1/models")).models;
}

/** Counters of a model since the server's start. */
export function statistics(model) {
  return ask(`v1/models/${encodeURIComponent(model)}/statistics`);
}

/** The result of one image, a Blob; `query` is an object of parameters. */
export async function classify(image, query) {
  const answer = await ask(`v1/classify?${new URLSearchParams(query)}`, {
    method: "POST",
    // The server looks at the bytes; a type guessed from a file's name would only mislead.
    headers: { "content-type": "application/octet-stream" },
    body: image,
  });
  const [result] = answer.results;
  if (!result?.predictions) throw new Refused(result?.error ?? "The server answered without a result.", result?.code);
  return result;
}

/** A sample's bytes. */
export async function sample(name) {
  const response = await fetch(`page/samples/${name}`).catch(() => null);
  if (!response?.ok) throw new Refused(`The sample ${name} cannot be fetched.`, "unreachable");
  return response.blob();
}
