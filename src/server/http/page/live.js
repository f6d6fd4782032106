// The server's own statistics of a model, read every two seconds while the page is seen.

import { statistics } from "./api.js";
import { percent } from "./text.js";

const EVERY = 2000;
const WINDOW = 5;
const KEPT = 30;

const find = (id) => document.getElementById(id);

let model = null;
let readings = [];
let rates = [];
let timer = 0;

/** Shows the statistics of the model called `name` from now on. */
export function watch(name) {
  model = name;
  readings = [];
  rates = [];
  read();
}

/** Reads now, for example once there is an API key. */
export async function read() {
  clearTimeout(timer);
  if (!model || document.hidden) return;
  const asked = model;
  try {
    const found = await statistics(asked);
    if (asked === model) show(found);
  } catch (refused) {
    readings = [];
    find("live-rate").textContent = "–";
    find("live-rate").title = refused.message;
    // Without a key there is nothing to read; entering one reads again.
    if (refused.status === 401) return;
  }
  clearTimeout(timer);
  timer = setTimeout(read, EVERY);
}

document.addEventListener("visibilitychange", () => {
  // What happened while nobody looked is not a rate of now.
  readings = [];
  read();
});

function show(found) {
  readings.push({ images: found.images, at: performance.now() });
  readings = readings.slice(-WINDOW - 1);
  const [first, last] = [readings[0], readings[readings.length - 1]];
  const seconds = (last.at - first.at) / 1000;
  // A server that was started anew counts from zero.
  if (last.images < first.images) readings = [last];
  else if (seconds > 0) rates = [...rates, (last.images - first.images) / seconds].slice(-KEPT);
  const rate = rates.at(-1) ?? 0;
  find("live-rate").removeAttribute("title");
  find("live-rate").textContent = rate >= 10 ? rate.toFixed(0) : rate.toFixed(1);
  find("live-images").textContent = found.images.toLocaleString("en");
  const { policy, executed, full } = found.flops;
  const any = found.images > 0 && full > 0;
  const kept = any ? (found.blocks_kept / found.images).toFixed(1) : "–";
  find("live-blocks").textContent = `${kept} of ${found.blocks_total}`;
  find("live-flops").textContent = any ? percent((policy + executed) / full) : "–";
  find("live-speedup").textContent = any ? `${(full / (policy + executed)).toFixed(2)}×` : "–";
  spark(find("live-spark"));
}

/** The rates so far, once there are some. */
function spark(svg) {
  if (rates.length < 3) return svg.replaceChildren();
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, index) => `${index},${(18 - (rate / most) * 16).toFixed(1)}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  svg.setAttribute("viewBox", `0 0 ${rates.length - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(line);
}
