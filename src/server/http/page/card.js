// An image on the page: what is known of it, and its card.

import { draw } from "./net.js";
import { plot } from "./plot.js";
import { count, flopsOf, millisecondsOf, percent } from "./text.js";

/** Classes in a card. */
const SHOWN = 3;

/** The query of a path, as the key under which its runs are kept. */
export const keyOf = (choice) => new URLSearchParams(choice).toString();

export const FULL = { path: "full" };

/** Whether the image itself is at fault, whatever is done with it. */
const atFault = ({ status, code }) => [400, 413, 415].includes(status) && code !== "invalid_parameter";

/** Runs of one image by one choice of blocks: the last result, or why there is none, and the times so far. */
const unknown = () => ({ result: null, refused: null, times: [] });

export class Card {
  /** `on` has the functions {press(card, block), undo(card), again(card), remove(card)}. */
  constructor(name, image, on) {
    this.name = name;
    this.image = image;
    /** The mask that was chosen by hand, or null. */
    this.mask = null;
    this.runs = new Map();
    /** Why no run of this image can go well, or null. */
    this.fault = null;
    this.shown = null;
    this.url = URL.createObjectURL(image);
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const thumb = this.find(".thumb");
    thumb.src = this.url;
    thumb.alt = name;
    // What the browser cannot show, the server may still read.
    thumb.onerror = () => {
      thumb.removeAttribute("src");
      thumb.alt = "";
    };
    this.find(".name").textContent = name;
    this.find(".remove").setAttribute("aria-label", `Remove ${name}`);
    this.find(".remove").onclick = () => on.remove(this);
    this.find(".undo").onclick = () => on.undo(this);
    this.find(".again").onclick = () => on.again(this);
    this.press = (block) => on.press(this, block);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  /** Begins anew with `model`. */
  use(model) {
    this.model = model;
    this.mask = null;
    this.forget();
    this.shown = null;
    for (const text of this.element.querySelectorAll(".meter .text, .how")) text.textContent = "";
    for (const bar of this.element.querySelectorAll(".meter .bar i")) bar.style.width = "0";
    this.light = draw(this.find(".net"), model, this.press);
  }

  forget() {
    this.runs.clear();
    this.fault = null;
  }

  /** What is known of the image by `choice`. */
  by(choice) {
    return this.runs.get(keyOf(choice)) ?? { ...unknown(), refused: this.fault };
  }

  learn(choice, learned) {
    if (learned.refused && atFault(learned.refused)) this.fault = learned.refused;
    const { times } = this.by(choice);
    const time = learned.result && learned.timed ? [learned.result.timing_ms.policy + learned.result.timing_ms.backbone] : [];
    this.runs.set(keyOf(choice), { result: null, refused: null, ...learned, times: [...times, ...time] });
  }

  /** FLOPs and decision by `choice` beside the full net's; null where either is unknown. */
  compared(choice) {
    const [now, full] = [this.by(choice).result, this.by(FULL).result];
    if (!now || !full) return null;
    const { label, class: of } = full.predictions[0];
    const found = now.predictions.find((prediction) => prediction.class === of);
    const top = now.predictions[0];
    return { now, full, label, ratio: now.flops.ratio, probability: found?.probability ?? 0, agrees: top.class === of };
  }

  /** Shows what is known of the image by `choice`, and by each of `thresholds`, a list of [threshold, choice]. */
  show(choice, thresholds, at) {
    const { result, refused, times } = this.by(choice);
    this.element.setAttribute("aria-busy", String(!result && !refused));
    const error = this.find(".error");
    error.hidden = !refused;
    if (refused) {
      error.firstElementChild.textContent = refused.message;
      // What the server or the way to it lacked may be there by now.
      this.find(".again").hidden = atFault(refused);
    }
    this.element.classList.toggle("failed", Boolean(refused));
    this.find(".result").hidden = !this.shown && !result;
    this.find(".by-hand").hidden = this.mask === null;
    if (result) this.shown = result;
    if (refused) {
      this.find(".blocks").textContent = "";
      this.find(".share").textContent = "";
      this.find(".result").hidden = true;
    }
    if (result) this.showResult(result);
    this.showComparison(choice, times);
    this.showCurve(thresholds, at);
  }

  showResult({ predictions, path, flops: spent }) {
    this.find(".blocks").textContent = `${path.blocks_kept} of ${path.blocks_total} blocks,`;
    this.find(".share").textContent = `${percent(spent.ratio)} of the FLOPs`;
    const entries = predictions.slice(0, SHOWN).map(({ label, probability }) => {
      const entry = document.createElement("li");
      const [name, bar, text] = ["span", "span", "span"].map((part) => document.createElement(part));
      name.className = "label";
      name.textContent = name.title = label;
      bar.className = "bar";
      bar.append(document.createElement("i"));
      bar.firstChild.style.width = `${probability * 100}%`;
      text.className = "text";
      text.textContent = percent(probability, 2);
      entry.append(name, bar, text);
      return entry;
    });
    this.find(".classes").replaceChildren(...entries);
    this.light(path.mask);
    const kept = [...path.mask].flatMap((bit, index) => (bit === "1" ? [index] : []));
    const which = kept.length ? `: ${kept.join(", ")}` : "";
    this.find(".net").setAttribute("aria-label", `${path.blocks_kept} of ${path.blocks_total} blocks kept${which}`);
    this.find(".net").dataset.mask = path.mask;
  }

  showComparison(choice, times) {
    const verdict = this.find(".verdict");
    const compared = this.compared(choice);
    // Until there is an answer, what was said last stays: a text that comes and goes would move all below it.
    if (!compared && this.element.getAttribute("aria-busy") === "true") return;
    verdict.className = "verdict";
    verdict.textContent = "";
    if (!compared) return;
    const { now, full, label, agrees } = compared;
    const sure = percent(full.predictions[0].probability, 2);
    verdict.classList.add(agrees ? "agrees" : "differs");
    verdict.textContent = `${agrees ? "Same class as the full net" : "The full net says"}: ${label}, ${sure}`;
    const spent = now.flops.policy + now.flops.executed;
    meter(this.find(".flops"), spent, full.flops.executed, flopsOf);
    const fullTimes = this.by(FULL).times;
    if (!times.length || !fullTimes.length) return;
    // The fastest is what the nets take; the others are what else the machine did at the time.
    meter(this.find(".time"), Math.min(...times), Math.min(...fullTimes), millisecondsOf);
    const runs = count(Math.min(times.length, fullTimes.length), "run", "runs");
    this.find(".how").textContent = `Both with the policy network’s; the time is the best of ${runs}.`;
  }

  showCurve(thresholds, at) {
    const points = thresholds.flatMap(([threshold, choice]) => {
      const compared = this.compared(choice);
      if (!compared) return [];
      return [{ threshold, cost: Math.min(compared.ratio, 1), quality: compared.probability, agrees: compared.agrees }];
    });
    this.find(".curve").hidden = points.length < 2 || at === null;
    if (points.length > 1 && at !== null) plot(this.find(".curve svg"), points, at, true);
  }

  /** Takes the card off the page. */
  remove() {
    this.element.remove();
    URL.revokeObjectURL(this.url);
  }
}

/** A bar of `part` beside `whole`, in text too. */
function meter(element, part, whole, text) {
  const most = Math.max(part, whole);
  element.querySelector(".bar i").style.width = `${(part / most) * 100}%`;
  element.querySelector(".text").textContent = text(part, whole);
}
