// What a threshold costs and what it does to the decision, as far as it is known.

const SVG = "http://www.w3.org/2000/svg";

function shape(name, className, attributes) {
  const made = document.createElementNS(SVG, name);
  made.setAttribute("class", className);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

const line = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

/**
 * Plots `points`, a list of {threshold, cost, quality, agrees}, all from 0 to 1 and `agrees` a boolean, into `svg`;
 * `at` is the threshold that is set. With `bands`, a line below the curves tells where the class is the full net's.
 */
export function plot(svg, points, at, bands) {
  const sorted = [...points].sort((a, b) => a.threshold - b.threshold);
  const x = (value) => value * 100;
  const y = (value) => 4 + (1 - value) * 80;
  const parts = [0, 0.5, 1].map((value) => shape("path", "grid", { d: `M0 ${y(value)}H100` }));
  const along = (what) => sorted.map((point) => [x(point.threshold), y(point[what])]);
  for (const what of ["quality", "cost"]) {
    if (sorted.length > 1) parts.push(shape("path", `curve ${what}`, { d: line(along(what)) }));
    for (const [px, py] of along(what)) {
      // A line of no length with round ends: a dot that the stretching of the picture leaves round.
      parts.push(shape("path", `dot ${what}`, { d: `M${px} ${py}h0` }));
    }
  }
  // Each point's part of the line goes to halfway to its neighbours.
  (bands ? sorted : []).forEach((point, index) => {
    const from = index ? (sorted[index - 1].threshold + point.threshold) / 2 : point.threshold;
    const to = index < sorted.length - 1 ? (sorted[index + 1].threshold + point.threshold) / 2 : point.threshold;
    if (to > from) {
      const kind = point.agrees ? "agrees" : "differs";
      parts.push(shape("path", `band ${kind}`, { d: `M${x(from)} 95H${x(to)}` }));
    }
  });
  parts.push(shape("path", "now", { d: `M${x(at)} 0V100` }));
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...parts);
  svg.setAttribute("aria-label", inWords(sorted));
}

function inWords(points) {
  if (points.length < 2) return "Nothing to plot yet: move the threshold, or try every one.";
  const agreeing = points.filter((point) => point.agrees).map((point) => point.threshold.toFixed(2));
  const [first, last] = [points[0], points[points.length - 1]];
  const share = (value) => `${Math.round(value * 100)} %`;
  const span = `From threshold ${first.threshold.toFixed(2)} to ${last.threshold.toFixed(2)}, FLOPs go from `;
  const cost = `${span}${share(first.cost)} to ${share(last.cost)} of the full net’s.`;
  if (agreeing.length === 0) return `${cost} The class is never the full net’s.`;
  return `${cost} The class is the full net’s at ${agreeing.length} of ${points.length}, up to ${agreeing.at(-1)}.`;
}
