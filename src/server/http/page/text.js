// Numbers as people read them.

const digits = (value, most) => value.toLocaleString("en", { maximumSignificantDigits: most });

/** 0.9998 as "99.98 %", its space one that does not break; never 100 % or 0 % for what is not. */
export function percent(share, places = 0) {
  const least = 10 ** -places;
  const value = share * 100;
  if (value > 0 && value < least / 2) return `<\u202f${least}\u00a0%`;
  if (value < 100 && value > 100 - least / 2) return `>\u202f${(100 - least).toFixed(places)}\u00a0%`;
  return `${value.toFixed(places)}\u00a0%`;
}

const SIZES = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]];

/** 49474688 as "49.5 M", in the unit of `like`. */
export function flops(count, like = count) {
  const [unit, size] = SIZES.find(([, size]) => like >= size) ?? SIZES.at(-1);
  return `${digits(count / size, 3)} ${unit}`;
}

/** A part of a whole: "49.5 of 138 M, 36 %". */
export function flopsOf(part, whole) {
  return `${flops(part, whole).split(" ")[0]} of ${flops(whole)}, ${percent(part / whole)}`;
}

export function millisecondsOf(part, whole) {
  return `${milliseconds(part)} of ${milliseconds(whole)} ms, ${percent(part / whole)}`;
}

function milliseconds(time) {
  return time >= 100 ? time.toFixed(0) : time >= 10 ? time.toFixed(1) : time.toFixed(2);
}

export function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
