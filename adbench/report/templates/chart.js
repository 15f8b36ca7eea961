// Figures drawn anew from their data, with the looks that matplotlib gives them: ask a point for its value, follow a
// method through all panels, take methods away.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "currentColor"];
const DASHES = ["", "7 2.5", "2 2", "8 2.5 2 2.5", "4 2 1.5 2 1.5 2"];
const NEAR = 48; // pixels from which a pointer asks for a point

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Corners at the given angles (degrees, 0 to the right, 90 down), the radii taken in turn. */
const corners = (angles, ...radii) => angles.map((angle, i) => [angle, radii[i % radii.length]]);
const turns = (n, first) => Array.from({ length: n }, (_, i) => first + (360 * i) / n);
const plus = (first) => turns(4, first).flatMap((a) => [[a - 20, 1.1], [a + 20, 1.1], [a + 45, 0.5]]);
const SHAPES = [
  corners(turns(24, 0), 0.95), corners(turns(4, 45), 1.2), corners(turns(4, 0), 1.2), corners(turns(3, -90), 1.2),
  corners(turns(3, 90), 1.2), plus(0), corners(turns(10, -90), 1.35, 0.55), plus(45),
  corners(turns(5, -90), 1.1), corners(turns(6, -90), 1.1), corners(turns(3, 180), 1.2), corners(turns(3, 0), 1.2),
];

function mark(look, x, y, radius = 4) {
  const at = ([angle, r]) => {
    const turn = (angle * Math.PI) / 180;
    return `${(x + radius * r * Math.cos(turn)).toFixed(1)},${(y + radius * r * Math.sin(turn)).toFixed(1)}`;
  };
  const colour = COLOURS[look % COLOURS.length];
  // Every second mark is hollow: neighbours differ even where shapes look alike.
  return svg("path", { class: "mark", d: `M${SHAPES[look % SHAPES.length].map(at).join("L")}Z`, stroke: colour, fill: look % 2 ? "var(--paper)" : colour });
}

/** Round numbers in [low, high], some `count` of them. */
function ticks(low, high, count, log) {
  if (log) {
    const found = [];
    const many = Math.log10(high / low) < 2.5 ? [1, 2, 5] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of many) found.push(digit * 10 ** power);
    }
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
  return Array.from({ length: Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1 }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step);
}

const spelt = (value) => String(parseFloat(value.toPrecision(4))).replace("-", "\u2212");

/** From values on an axis to pixels, with some air at both ends. */
function scale(values, log, from, to) {
  const map = log ? Math.log : (value) => value;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
  const air = 0.05 * (map(high) - map(low));
  const [first, last] = [map(low) - air, map(high) + air];
  const place = (value) => from + ((map(value) - first) / (last - first)) * (to - from);
  const back = log ? Math.exp : (value) => value;
  return Object.assign(place, { low: back(first), high: back(last) });
}

class Panel {
  constructor(chart, data) {
    this.chart = chart;
    this.data = data;
    this.at = null; // [series, point] that a key or the pointer asks for
    this.node = element("div", { class: "panel", tabindex: "0", role: "group", "aria-label": `${data.title || chart.title}. Arrow keys go from point to point and from method to method.` });
    this.node.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("pointerdown", (event) => this.point(event));
    this.node.addEventListener("pointerleave", () => this.ask(null));
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.node.addEventListener("blur", () => this.ask(null));
  }

  get series() { return this.data.series.filter((one) => !this.chart.off.has(one.name) && one.points.length); }

  /** Levels far from everything else would flatten what the figure is about. */
  placed() {
    const others = this.series.filter((one) => one.style !== "level");
    if (!others.length) return this.series;
    const ys = others.flatMap((one) => one.points.flatMap(([, y, low, high]) => [y, low ?? y, high ?? y]));
    const reach = Math.max(Math.max(...ys) - Math.min(...ys), 5);
    return this.series.filter((one) => one.style !== "level" || (one.points[0][1] > Math.min(...ys) - reach && one.points[0][1] < Math.max(...ys) + reach));
  }

  draw() {
    const [width, height, left, top, bottom] = [this.node.clientWidth, this.chart.data.length > 1 ? 250 : 340, 46, 30, 42];
    const { x: xAxis, y: yAxis } = this.data;
    const right = width - 10;
    const shown = this.placed();
    const points = shown.filter((one) => one.style !== "level").flatMap((one) => one.points);
    const named = xAxis.ticks.map(([at]) => at);
    const xs = [...points.map(([x]) => x), ...(named.length ? [Math.min(...named) - 0.5, Math.max(...named) + 0.5] : [])];
    const ys = shown.flatMap((one) => one.points.flatMap(([, y, low, high]) => [y, low ?? y, high ?? y]));
    const x = scale(xs.length ? xs : [0, 1], xAxis.log, left, right);
    const y = scale(ys.length ? ys : [0, 1], yAxis.log, height - bottom, top);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
    for (const value of ticks(y.low, y.high, 6, yAxis.log)) {
      picture.append(svg("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
      picture.append(svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, spelt(value)));
    }
    const marks = named.length ? xAxis.ticks : ticks(x.low, x.high, Math.max(2, Math.min(8, (right - left) / 70)), xAxis.log).map((value) => [value, spelt(value)]);
    for (const [value, text] of marks) {
      picture.append(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }));
      picture.append(svg("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, text));
    }
    picture.append(svg("line", { class: "axis", x1: left, x2: right, y1: height - bottom, y2: height - bottom }));
    picture.append(svg("text", { class: "title", x: 0, y: 12 }, this.data.title || yAxis.title));
    picture.append(svg("text", { class: "title", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xAxis.title));
    if (!shown.length) picture.append(svg("text", { x: (left + right) / 2, y: height / 2, "text-anchor": "middle" }, this.series.length || !this.chart.off.size ? "not measured" : "all taken away"));
    this.places = [];
    shown.forEach((one, place) => picture.append(this.drawSeries(one, place, x, y, left, right)));
    this.spot = svg("circle", { class: "spot", r: 8, visibility: "hidden" });
    picture.append(this.spot);
    this.node.replaceChildren(picture);
    this.picture = picture;
  }

  drawSeries(one, place, x, y, left, right) {
    const colour = one.style === "step" ? "currentColor" : COLOURS[one.look % COLOURS.length];
    const group = svg("g", { class: "series", stroke: colour });
    group.dataset.name = one.name;
    if (one.style === "level") {
      const [[, value, ...rest]] = one.points;
      group.append(svg("line", { x1: left, x2: right, y1: y(value), y2: y(value), "stroke-dasharray": "9 4", "stroke-width": 1.2 }));
      group.append(mark(one.look, left + 12 + 22 * (place % 4), y(value)));
      this.places.push({ one, point: [0, value, ...rest], x: null, y: y(value) });
      return group;
    }
    const path = one.points.map(([px, py], i) => (i && one.style === "step" ? `H${x(px)}V${y(py)}` : `${i ? "L" : "M"}${x(px)} ${y(py)}`)).join("");
    if (one.style === "step") group.append(svg("path", { d: path, "stroke-dasharray": "1 3", "stroke-width": 1.3 }));
    if (one.style === "line") group.append(svg("path", { d: path, "stroke-dasharray": DASHES[one.look % DASHES.length] }));
    if (one.style === "step") return group;
    const every = one.points.length > 12 ? Math.ceil(one.points.length / 6) : 1;
    one.points.forEach((point, i) => {
      const [px, py, low, high] = point;
      if (typeof low === "number") {
        const [at, cap] = [x(px), 3];
        group.append(svg("path", { class: "bar-of", d: `M${at} ${y(low)}V${y(high)}M${at - cap} ${y(low)}h${2 * cap}M${at - cap} ${y(high)}h${2 * cap}` }));
      }
      if (i % every === one.look % every) group.append(mark(one.look, x(px), y(py)));
      this.places.push({ one, point, x: x(px), y: y(py) });
    });
    return group;
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const far = (place) => Math.hypot(place.x === null ? 0 : place.x - px, place.y - py) + (place.x === null ? 6 : 0);
    const nearest = this.places.reduce((best, place) => (best && far(best) <= far(place) ? best : place), null);
    this.ask(nearest && far(nearest) < NEAR ? nearest : null);
  }

  key(event) {
    if (event.key === "Escape") return void this.ask(null);
    const of = (one) => this.places.filter((place) => place.one === one);
    const lines = [...new Set(this.places.map((place) => place.one))];
    const here = this.at && this.places.find((place) => place.point === this.at.point && place.one === this.at.one);
    const along = here && of(here.one);
    const nearest = (one) => of(one).reduce((best, place) => (Math.abs((place.x ?? 0) - (here.x ?? 0)) < Math.abs((best.x ?? 0) - (here.x ?? 0)) ? place : best));
    const step = (by) => lines[(lines.indexOf(here.one) + by + lines.length) % lines.length];
    const to = {
      ArrowRight: () => (here ? along[Math.min(along.indexOf(here) + 1, along.length - 1)] : this.places[0]),
      ArrowLeft: () => (here ? along[Math.max(along.indexOf(here) - 1, 0)] : this.places[0]),
      ArrowDown: () => (here ? nearest(step(1)) : this.places[0]),
      ArrowUp: () => (here ? nearest(step(-1)) : this.places[0]),
      Home: () => here && along[0],
      End: () => here && along.at(-1),
    }[event.key]?.();
    if (to) { event.preventDefault(); this.ask(to, true); }
  }

  /** Show what stands at a place, and the method in all panels. */
  ask(place, aloud = false) {
    if (!place && !this.at) return;
    this.at = place;
    this.chart.near(place?.one.name);
    this.spot.setAttribute("visibility", place && place.x !== null ? "visible" : "hidden");
    if (!place) return void card.hide();
    const box = this.picture.getBoundingClientRect();
    const at = place.x ?? box.width / 2;
    this.spot.setAttribute("cx", at);
    this.spot.setAttribute("cy", place.y);
    const [px, py, low, high, note] = place.point;
    const { x: xAxis, y: yAxis, title } = this.data;
    const lines = [note, typeof low === "number" && `${low.toFixed(2)} to ${high.toFixed(2)}`];
    const where = place.x === null || xAxis.nudged || xAxis.ticks.length ? "" : `${xAxis.title}: ${spelt(px)}`;
    const value = typeof low === "number" ? py.toFixed(2) : spelt(py);
    const content = [element("p", { class: "of" }, `${place.one.name} · ${title || yAxis.title}`), element("p", { class: "value" }, value)];
    content.push(...[where, lines.filter(Boolean).join(": ")].filter(Boolean).map((text) => element("p", { class: "of" }, text)));
    card.show(this.node, content, false, () => {
      const { left, top } = this.picture.getBoundingClientRect();
      return new DOMRect(left + at - 8, top + place.y - 8, 16, 16);
    });
    if (aloud) say(content.map((node) => node.textContent).join(", "));
  }
}

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector("script").textContent);
    this.title = figure.querySelector("figcaption b").textContent;
    this.off = new Set();
    this.chosen = undefined; // the method that the page's filter asks for
    this.panels = this.data.map((panel) => new Panel(this, panel));
    this.box = element("div", { class: "panels" }, ...this.panels.map((panel) => panel.node));
    this.node = element("div", { class: "chart" }, this.box, this.legend());
    figure.prepend(this.node);
    figure.classList.add("drawn");
    new ResizeObserver(() => this.draw()).observe(this.box);
    document.addEventListener("filtered", (event) => { this.chosen = event.detail; this.draw(); });
  }

  draw() {
    if (!this.box.clientWidth) return;
    this.panels.forEach((panel) => panel.draw());
    this.near();
  }

  legend() {
    const series = new Map(this.data.flatMap((panel) => panel.series).map((one) => [one.name, one]));
    const items = [...series.values()].map((one) => {
      const colour = one.style === "step" ? "currentColor" : COLOURS[one.look % COLOURS.length];
      const dashes = { level: "9 4", step: "1 3" }[one.style] ?? DASHES[one.look % DASHES.length];
      const swatch = svg("svg", { class: "series", viewBox: "0 0 34 14", "aria-hidden": "true" });
      if (one.style !== "points") swatch.append(svg("line", { x1: 1, x2: 33, y1: 7, y2: 7, stroke: colour, "stroke-dasharray": dashes }));
      if (one.style !== "step") swatch.append(mark(one.look, 17, 7));
      const button = element("button", { type: "button", "aria-pressed": "true" }, swatch, one.name + (one.style === "level" ? " (no teacher)" : ""));
      button.addEventListener("click", () => {
        const gone = this.off.delete(one.name) ? false : Boolean(this.off.add(one.name));
        button.setAttribute("aria-pressed", String(!gone));
        this.draw();
      });
      for (const [event, name] of [["pointerenter", one.name], ["focus", one.name], ["pointerleave"], ["blur"]]) button.addEventListener(event, () => this.near(name));
      return element("li", {}, button);
    });
    return element("ul", { class: "legend", "aria-label": "Methods shown" }, ...items);
  }

  /** Let one method stand out: the one asked for, else the filter's. */
  near(name = this.chosen) {
    const known = name !== undefined && this.data.some((panel) => panel.series.some((one) => one.name === name));
    this.box.classList.toggle("hint", known);
    all("g.series", this.box).forEach((group) => group.classList.toggle("near", known && group.dataset.name === name));
  }
}

const setUpChart = (figure) => new Chart(figure);
