// What the page shows, and what it asks the server for.

import { Refused, classify, models, sample, useKey } from "./api.js";
import { Card, FULL } from "./card.js";
import * as live from "./live.js";
import { draw } from "./net.js";
import { plot } from "./plot.js";
import { count, percent } from "./text.js";

const SAMPLES = ["airplane.png", "automobile.jpg", "horse.jpg", "ship.webp", "truck.jpg"];
/** Images on the page at once. */
const MOST = 24;
/** Runs of a path, and of the full net beside it, that a shown time is the best of. */
const RUNS = 5;
/** Classes asked for: enough to find the full net's among them. */
const CLASSES = 10;
/** Steps of "Try every threshold", and how many of its requests are under way at once. */
const STEPS = Array.from({ length: 21 }, (_, step) => step / 20);
const AT_ONCE = 4;
/** Blocks drawn by chance are drawn once, not anew in each run. */
const SEED = 1;
/** The threshold's slider rests for this many milliseconds before images run again. */
const REST = 80;

const find = (id) => document.getElementById(id);

const state = {
  models: [],
  model: null,
  /** Null is the model's own. */
  threshold: null,
  path: "policy",
  count: 0,
  /** The budget of blocks; null is none. */
  most: null,
  cards: [],
  /** Whether every threshold is to be tried, and the thresholds that were asked for since. */
  sweeping: false,
  visited: new Set(),
  /** Nothing is asked before there is a key. */
  locked: false,
};

// --- What is asked for

const threshold = () => state.threshold ?? state.model.threshold;

function byThreshold(value) {
  const choice = { path: "policy", threshold: String(value) };
  return state.most === null ? choice : { ...choice, max_blocks: String(state.most) };
}

function choiceOf(card) {
  if (card.mask !== null) return { path: `mask:${card.mask}` };
  if (state.path === "policy") return byThreshold(threshold());
  if (state.path === "full") return FULL;
  return { path: state.path === "random_k" ? `random_k:${state.count}:${SEED}` : `${state.path}:${state.count}` };
}

/**
 * The requests to make next, as [card, choice, timed]: first each image by its choice and by the full net, then other
 * thresholds, then the same again for steadier times. Those that are timed run alone, so that none waits for another.
 */
function next() {
  const missing = (card, choice) => {
    const { result, refused } = card.by(choice);
    return !result && !refused;
  };
  const well = (card) => !card.by(choiceOf(card)).refused;
  for (const card of state.cards) {
    if (missing(card, choiceOf(card))) return [[card, choiceOf(card), true]];
  }
  const cards = state.cards.filter(well);
  for (const card of cards) {
    if (missing(card, FULL)) return [[card, FULL, true]];
  }
  if (state.sweeping) {
    const steps = STEPS.flatMap((value) => cards.map((card) => [card, byThreshold(value), false]));
    const left = steps.filter(([card, choice]) => missing(card, choice));
    if (left.length) return left.slice(0, AT_ONCE);
    state.sweeping = false;
  }
  for (let runs = 1; runs < RUNS; runs += 1) {
    for (const card of cards) {
      for (const choice of [choiceOf(card), FULL]) {
        const { result, times } = card.by(choice);
        if (result && times.length <= runs) return [[card, choice, true]];
      }
    }
  }
  return [];
}

let running = false;

/** Asks for what is missing until nothing is. */
async function run() {
  if (running) return;
  running = true;
  try {
    while (state.model && !state.locked) {
      const requests = next();
      if (requests.length === 0) break;
      await Promise.all(requests.map((request) => ask(...request)));
      show();
    }
  } finally {
    running = false;
  }
  show();
}

async function ask(card, choice, timed) {
  const model = state.model;
  let learned;
  try {
    // The version as well: another one, loaded since, may have other blocks.
    const query = { model: model.name, version: model.version, top_k: String(CLASSES), ...choice };
    learned = { result: await classify(card.image, query), timed };
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    if (refused.status === 401) return lock();
    // A full net or a threshold that is refused is the image's own refusal: it is shown in its place.
    learned = { refused };
  }
  if (model === state.model) card.learn(choice, learned);
}

// --- What is shown

/** Choices along the slider whose answers are known or asked for. */
function thresholds() {
  const values = new Set([...STEPS, ...state.visited, threshold()]);
  return [...values].map((value) => [value, byThreshold(value)]);
}

function show() {
  if (!state.model) return;
  const decides = state.path === "policy";
  const along = thresholds();
  for (const card of state.cards) card.show(choiceOf(card), along, decides ? threshold() : null);
  find("threshold").disabled = !decides;
  find("threshold").value = threshold();
  find("threshold-value").textContent = threshold().toFixed(2);
  find("sweep").disabled = !decides || state.cards.length === 0 || state.sweeping;
  find("sweep").textContent = state.sweeping ? "Trying…" : "Try every threshold";
  find("reset").disabled = !decides || state.threshold === null;
  find("count-field").hidden = !state.path.endsWith("_k");
  find("most-field").hidden = !decides;
  find("clear").hidden = state.cards.length === 0;
  find("empty").hidden = state.cards.length > 0;
  const points = along.flatMap(([value, choice]) => {
    const all = state.cards.filter((card) => !card.by(choiceOf(card)).refused).map((card) => card.compared(choice));
    if (all.length === 0 || all.includes(null)) return [];
    const mean = (of) => all.reduce((sum, compared) => sum + of(compared), 0) / all.length;
    const quality = mean(({ agrees }) => Number(agrees));
    return [{ threshold: value, cost: Math.min(mean(({ ratio }) => ratio), 1), quality, agrees: quality === 1 }];
  });
  plot(find("plot"), points, threshold(), false);
  const said = summary();
  if (find("summary").textContent !== said) find("summary").textContent = said;
}

/** All images together, in a sentence. */
function summary() {
  if (state.cards.length === 0) return "";
  const known = state.cards.flatMap((card) => {
    const compared = card.compared(choiceOf(card));
    return compared ? [{ card, ...compared }] : [];
  });
  const failed = state.cards.filter((card) => card.by(choiceOf(card)).refused).length;
  if (known.length + failed < state.cards.length) return find("summary").textContent || "Running…";
  const parts = [];
  if (known.length) {
    const mean = (of) => known.reduce((sum, one) => sum + of(one), 0) / known.length;
    const blocks = mean(({ now }) => now.path.blocks_kept);
    const total = known[0].now.path.blocks_total;
    const agreeing = known.filter(({ agrees }) => agrees).length;
    const kept = Number.isInteger(blocks) ? blocks : blocks.toFixed(1);
    parts.push(`${count(known.length, "image", "images")}: ${kept} of ${total} blocks`);
    parts.push(`${percent(mean(({ ratio }) => ratio))} of the FLOPs`);
    parts.push(`${agreeing} of ${known.length} the same class as the full net`);
  }
  if (failed) parts.push(`${count(failed, "image", "images")} refused`);
  return `${parts.join(", ")}.`;
}

function notice(text) {
  find("notice").textContent = text;
  find("notice").hidden = !text;
}

// --- Images in and out

const on = {
  press(card, block) {
    const before = card.mask ?? card.by(choiceOf(card)).result?.path.mask;
    if (!before) return;
    card.mask = [...before].map((bit, index) => (index === block ? String(1 - bit) : bit)).join("");
    changed();
  },
  undo(card) {
    card.mask = null;
    changed();
    card.find(".block[tabindex='0']").focus();
  },
  again(card) {
    card.forget();
    changed();
  },
  remove(card) {
    const at = state.cards.indexOf(card);
    state.cards.splice(at, 1);
    card.remove();
    const neighbour = state.cards[at] ?? state.cards.at(-1);
    (neighbour ? neighbour.find(".remove") : find("files")).focus();
    changed();
  },
};

function add(images) {
  const room = MOST - state.cards.length;
  const left = images.length - room;
  notice(left > 0 ? `The page shows ${MOST} images at once; ${count(left, "image was", "images were")} left out.` : "");
  for (const image of images.slice(0, room)) {
    const card = new Card(image.name || "pasted image", image, on);
    if (state.model) card.use(state.model);
    state.cards.push(card);
    find("cards").append(card.element);
  }
  changed();
}

async function addSamples(names) {
  try {
    add(await Promise.all(names.map(async (name) => new File([await sample(name)], name))));
  } catch (refused) {
    notice(refused.message);
  }
}

/** Something else is to be shown: shows what is known of it, and asks for the rest. */
function changed() {
  if (state.model && state.path === "policy") state.visited.add(threshold());
  show();
  run();
}

// --- Models and keys

function use(model) {
  state.model = model;
  state.threshold = null;
  state.most = null;
  state.visited.clear();
  state.count = Math.ceil(model.blocks.length / 2);
  find("count").value = state.count;
  find("count").max = find("most").max = model.blocks.length;
  find("most").value = "";
  const { name, version, provider, blocks, classes, description } = model;
  find("about").textContent = `${name}, version ${version}, on ${provider}: ${count(blocks.length, "block", "blocks")}, ` +
    `${count(classes, "class", "classes")}. ${description}`;
  draw(find("empty-net"), model, null)("");
  for (const card of state.cards) card.use(model);
  live.watch(name);
  changed();
}

function lock() {
  state.locked = true;
  find("key").hidden = false;
  find("key-text").focus();
}

async function start() {
  try {
    state.models = await models();
  } catch (refused) {
    if (refused.status === 401) return lock();
    return notice(refused.message);
  }
  if (state.models.length === 0) return notice("No model is loaded.");
  notice("");
  const picker = find("model");
  picker.replaceChildren(...state.models.map(({ name }) => new Option(name, name)));
  find("picker").hidden = state.models.length < 2;
  const first = state.models.find((model) => model.default) ?? state.models[0];
  picker.value = first.name;
  use(first);
}

// --- Wiring

find("samples").replaceChildren(
  ...[...SAMPLES, null].map((name) => {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    if (name) {
      const image = document.createElement("img");
      image.src = `page/samples/${name}`;
      image.alt = `Sample ${name}`;
      button.append(image);
      button.onclick = () => addSamples([name]);
    } else {
      button.textContent = "All five";
      button.onclick = () => addSamples(SAMPLES);
    }
    entry.append(button);
    return entry;
  }),
);

find("files").onchange = (event) => {
  add([...event.target.files]);
  // The same file can be picked again.
  event.target.value = "";
};

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  add([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files);
});

let resting = 0;

/** Decides anew for all images, those with blocks chosen by hand too. */
function decide() {
  for (const card of state.cards) card.mask = null;
  clearTimeout(resting);
  show();
  resting = setTimeout(changed, REST);
}

find("threshold").oninput = (event) => {
  state.threshold = Number(event.target.value);
  decide();
};
find("reset").onclick = () => {
  state.threshold = null;
  decide();
  find("threshold").focus();
};
find("sweep").onclick = () => {
  state.sweeping = true;
  changed();
};
find("path").onchange = (event) => {
  state.path = event.target.value;
  decide();
};
find("count").oninput = (event) => {
  if (!event.target.validity.valid || event.target.value === "") return;
  state.count = Number(event.target.value);
  decide();
};
find("most").oninput = (event) => {
  if (!event.target.validity.valid) return;
  state.most = event.target.value === "" ? null : Number(event.target.value);
  decide();
};
find("model").onchange = (event) => use(state.models.find(({ name }) => name === event.target.value));
find("clear").onclick = () => {
  for (const card of state.cards.splice(0)) card.remove();
  notice("");
  changed();
  find("files").focus();
};
find("key").onsubmit = (event) => {
  event.preventDefault();
  useKey(find("key-text").value.trim());
  find("key-text").value = "";
  find("key").hidden = true;
  state.locked = false;
  if (state.model) {
    live.read();
    changed();
  } else {
    start();
  }
};

start();
