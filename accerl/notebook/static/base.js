// What every view draws with. No imports: this text comes before the view's own and both make one module.

/** An HTML element; `properties` are attributes, but functions become listeners ("click") and null is left out. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  assign(element, properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

/** An SVG element, as `h`. */
function s(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  assign(element, properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

function assign(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** In place of a kernel: a state that stays as it is. Bytes become the DataView that a live widget gets. */
function frozen(state) {
  const thaw = (value) => {
    if (Array.isArray(value)) return value.map(thaw);
    if (value === null || typeof value !== "object") return value;
    if ("$bytes" in value) return new DataView(Uint8Array.from(atob(value.$bytes), (c) => c.charCodeAt(0)).buffer);
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, thaw(each)]));
  };
  const values = thaw(state);
  return {
    isFrozen: true,
    get: (name) => values[name],
    set: (name, value) => (values[name] = value),
    on() {},
    off() {},
    send() {},
    save_changes() {},
  };
}

/** A number for people: 3 significant digits, k and M. */
function short(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

/** Round numbers within [low, high], about `count` of them. */
function ticks(low, high, count = 4) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= count + 0.5);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9 * span; tick += step) found.push(+tick.toPrecision(12));
  return found;
}

/**
 * Curves over a common x axis, as an SVG element.
 *
 * series: [{ label, colour (a CSS colour), x, y, low?, high?, width? }]; values that are null or not finite leave a gap.
 * options: width, height, x [low, high], y [low, high], xLabel, title; `cursor` (a value of x) draws a line;
 * `onPick(x)` is called when somebody clicks or drags in it.
 */
function chart(series, options = {}) {
  const { width = 360, height = 150, xLabel = "", title = "", cursor = null, onPick = null } = options;
  const [left, right, top, bottom] = [38, 8, title ? 20 : 8, xLabel ? 30 : 18];
  const known = (values) => values.filter((value) => value != null && Number.isFinite(value));
  const range = (values, given) => {
    if (given) return given;
    const all = known(values);
    if (!all.length) return [0, 1];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  };
  const [x0, x1] = range(series.flatMap((each) => Array.from(each.x)), options.x);
  const [y0, y1] = range(series.flatMap((each) => [...each.y, ...(each.low ?? []), ...(each.high ?? [])]), options.y);
  const X = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const Y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
  if (title) root.append(s("text", { x: left, y: 13, style: "fill:var(--ink)" }, title));
  for (const tick of ticks(y0, y1)) {
    root.append(s("line", { class: "axis", x1: left, x2: width - right, y1: Y(tick), y2: Y(tick) }));
    root.append(s("text", { x: left - 4, y: Y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1))
    root.append(s("text", { x: X(tick), y: height - bottom + 13, "text-anchor": "middle" }, short(tick)));
  if (xLabel) root.append(s("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel));
  for (const each of series) {
    if (each.low && each.high) root.append(s("path", { d: band(each, X, Y), fill: each.colour, opacity: 0.18 }));
    root.append(s("path", { d: path(each.x, each.y, X, Y), fill: "none", stroke: each.colour, "stroke-width": each.width ?? 1.8 }));
  }
  if (cursor != null) root.append(s("line", { class: "cursor", x1: X(cursor), x2: X(cursor), y1: top, y2: height - bottom }));
  if (onPick) {
    const pick = (event) => {
      if (event.type !== "pointerdown" && !event.buttons) return;
      const box = root.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      onPick(x0 + (Math.min(Math.max(at, left), width - right) - left) / (width - left - right) * (x1 - x0));
    };
    root.addEventListener("pointerdown", pick);
    root.addEventListener("pointermove", pick);
  }
  return root;
}

function path(x, y, X, Y) {
  let [text, pen] = ["", "M"];
  for (let index = 0; index < y.length; index++) {
    if (y[index] == null || !Number.isFinite(y[index])) {
      pen = "M";
      continue;
    }
    text += `${pen}${X(x[index]).toFixed(1)},${Y(y[index]).toFixed(1)}`;
    pen = "L";
  }
  return text;
}

function band({ x, low, high }, X, Y) {
  const kept = Array.from(x, (_, index) => index).filter((index) => low[index] != null && high[index] != null);
  const there = kept.map((index) => `${X(x[index]).toFixed(1)},${Y(high[index]).toFixed(1)}`);
  const back = kept.reverse().map((index) => `${X(x[index]).toFixed(1)},${Y(low[index]).toFixed(1)}`);
  return there.length ? `M${[...there, ...back].join("L")}Z` : "";
}

/** Labels with their colours, for the charts beside. */
function legend(series) {
  const item = ({ label, colour }) =>
    h("span", { style: "margin-right:10px;white-space:nowrap" }, h("span", { style: `color:${colour}` }, "● "), label);
  return h("div", { class: "faint", style: "display:flex;flex-wrap:wrap" }, ...series.map(item));
}

