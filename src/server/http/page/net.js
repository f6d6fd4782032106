// A ResNet drawn as its blocks, in running order along one wire: a block that is kept is a lit box in the wire's way,
// a dropped one an outline that the wire, the shortcut, passes through.

import { flops } from "./text.js";

const element = (name, className, text) => {
  const made = document.createElement(name);
  made.className = className;
  if (text) made.textContent = text;
  return made;
};

/**
 * Draws `model` into `into`. `press(block)` is called for a block that is pressed; where it is null, none can be.
 * Returns a function that lights the blocks of a mask.
 */
export function draw(into, model, press) {
  const blocks = [];
  const tallest = model.blocks[0]?.output[1] ?? 1;
  const segments = [];
  let row;
  model.blocks.forEach((block, index) => {
    const [channels, height, width] = block.output;
    if (index === 0 || block.segment !== model.blocks[index - 1].segment) {
      const segment = element("div", "segment");
      segment.style.setProperty("--tall", (height / tallest).toFixed(3));
      segment.setAttribute("role", "group");
      segment.setAttribute("aria-label", `Segment ${block.segment}: ${height}×${width}, ${channels} channels`);
      row = element("div", "row");
      segment.append(row, element("span", "shape", `${height}×${width}`));
      segments.push(segment);
      if (index === 0) row.append(element("span", "end", "stem"));
    }
    const cell = element(press ? "button" : "span", "block");
    if (press) {
      cell.type = "button";
      cell.tabIndex = index === 0 ? 0 : -1;
      cell.setAttribute("aria-label", `Block ${index}`);
    }
    cell.dataset.block = index;
    row.append(cell);
    blocks.push(cell);
  });
  row?.append(element("span", "end", "head"));
  into.replaceChildren(...segments);
  into.style.setProperty("--blocks", blocks.length);
  into.setAttribute("role", "group");

  const focus = (index) => {
    blocks.forEach((cell, other) => (cell.tabIndex = other === index ? 0 : -1));
    blocks[index].focus();
  };
  const last = blocks.length - 1;
  const moves = {
    ArrowRight: (at) => Math.min(at + 1, last),
    ArrowLeft: (at) => Math.max(at - 1, 0),
    Home: () => 0,
    End: () => last,
  };
  into.onkeydown = (event) => {
    const at = blocks.indexOf(event.target);
    if (at < 0 || !press || !moves[event.key]) return;
    event.preventDefault();
    focus(moves[event.key](at));
  };
  into.onclick = (event) => {
    const at = blocks.indexOf(event.target);
    if (at < 0 || !press) return;
    focus(at);
    press(at);
  };

  return (mask) => {
    blocks.forEach((cell, index) => {
      const kept = mask[index] === "1";
      const { flops_kept, flops_dropped } = model.blocks[index];
      const cost = kept ? `kept: ${flops(flops_kept)}FLOPs` : `dropped: ${flops(flops_kept - flops_dropped)}FLOPs saved`;
      cell.classList.toggle("kept", kept);
      if (press) cell.setAttribute("aria-pressed", String(kept));
      cell.title = `Block ${index}, ${cost}`;
    });
  };
}
