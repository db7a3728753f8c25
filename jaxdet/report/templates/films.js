"use strict";
// Each .gallery holds its films as JSON, see jaxdet/report/films.py. Boxes are drawn anew, as SVG in
// pixels of the screen, whenever a control or the size of a film changes.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 15; // of a label
const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `11px ${getComputedStyle(document.body).getPropertyValue("--font")}`;

function make(parent, name, attributes = {}, text = "") {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

function draw(svg, name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  svg.appendChild(element);
}

const apart = (a, b) => a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;

// A free place for a label of a box, as near to it as can be; null where the film is full.
function place(box, w, width, height, taken) {
  const free = (x, y) => {
    const label = { x, y, w, h: HEIGHT };
    const inside = x >= 0 && y >= 0 && x + w <= width && y + HEIGHT <= height;
    return inside && taken.every((other) => apart(label, other)) ? label : null;
  };
  const right = Math.max(0, Math.min(box.x, width - w)); // slid in where it would stick out
  const left = Math.max(0, Math.min(box.x + box.w - w, width - w));
  for (const y of [box.y - HEIGHT - 1, box.y + box.h + 1, box.y + 1, box.y + box.h - HEIGHT - 1]) {
    for (const x of [right, left]) {
      const label = free(x, y);
      if (label) return label;
    }
  }
  const spots = [];
  for (let y = 0; y + HEIGHT <= height; y += HEIGHT / 3) {
    for (let x = 0; x + w <= width; x += 12) {
      const dx = Math.max(box.x - x - w, 0, x - box.x - box.w);
      const dy = Math.max(box.y - y - HEIGHT, 0, y - box.y - box.h);
      spots.push([dx * dx + dy * dy, x, y]);
    }
  }
  spots.sort((a, b) => a[0] - b[0]);
  for (const [, x, y] of spots) {
    const label = free(x, y);
    if (label) return label;
  }
  return null;
}

// The boxes of a film that are to be seen, as {name, style, box, ...}. A truth has no label of its
// own where a detection that hits it is seen, which has the same.
function visible(film, data, state) {
  const seen = [];
  for (const layer of data.layers) {
    if (!state.layers.has(layer.key)) continue;
    for (const [label, x1, y1, x2, y2, style, score, text] of film.boxes[layer.key] || []) {
      if (state.label >= 0 && label !== state.label) continue;
      if (layer.scored && score < state.score) continue;
      const missed = style === "truth" && (score === 0 || score < state.score);
      const named = style === "truth" && !missed && state.layers.has("found");
      const parts = [data.classes[label], text];
      if (layer.scored) parts.push(score.toFixed(2));
      if (missed) parts.push("missed");
      seen.push({
        name: layer.silent || named ? "" : parts.filter(Boolean).join(" "),
        style: missed ? "missed" : style, score, x1, y1, x2, y2,
      });
    }
  }
  return seen;
}

function drawFilm(svg, film, data, state) {
  const width = svg.clientWidth, height = svg.clientHeight;
  svg.replaceChildren();
  if (!width) return;
  const taken = [];
  const shown = visible(film, data, state).map((row) => ({
    ...row,
    x: (row.x1 / film.width) * width, w: ((row.x2 - row.x1) / film.width) * width,
    y: (row.y1 / film.height) * height, h: ((row.y2 - row.y1) / film.height) * height,
  }));
  for (const { x, y, w, h, style } of shown) {
    draw(svg, "rect", { class: `box ${style}`, x, y, width: w, height: h });
  }
  for (const box of shown) {
    if (!box.name || !state.labels) continue;
    const label = place(box, ruler.measureText(box.name).width + 8, width, height, taken);
    if (!label) continue;
    taken.push(label);
    const x = Math.max(box.x, Math.min(label.x + label.w / 2, box.x + box.w));
    const y = Math.max(box.y, Math.min(label.y + HEIGHT / 2, box.y + box.h));
    const toX = Math.max(label.x, Math.min(x, label.x + label.w));
    const toY = Math.max(label.y, Math.min(y, label.y + HEIGHT));
    if (Math.hypot(toX - x, toY - y) > 3) {
      draw(svg, "line", { class: `leader ${box.style}`, x1: x, y1: y, x2: toX, y2: toY });
    }
    draw(svg, "rect", { class: "plate", x: label.x, y: label.y, width: label.w, height: HEIGHT, rx: 2 });
    draw(svg, "text", { class: box.style, x: label.x + 4, y: label.y + 11 }, box.name);
  }
}

// What the caption says: how many findings there are, found, and alarms that are false.
function count(film, data, state) {
  if (!film.boxes.found) return film.note || "";
  const of = (key) => film.boxes[key].filter((box) => state.label < 0 || box[0] === state.label);
  const truth = of("truth"), found = of("found").filter((box) => box[6] >= state.score);
  const hits = truth.filter((box) => box[6] > 0 && box[6] >= state.score).length;
  const alarms = found.filter((box) => box[5].startsWith("false")).length;
  const findings = truth.length ? `${hits} of ${truth.length} found` : "normal";
  return `${findings}, ${alarms} false alarm${alarms === 1 ? "" : "s"}`;
}

function setUp(gallery) {
  const data = JSON.parse(gallery.querySelector("script").textContent);
  const form = gallery.querySelector("form");
  const films = gallery.querySelector(".films");
  const said = gallery.querySelector(".said");

  function read() {
    const values = new FormData(form);
    return {
      group: values.get("group"),
      label: Number(values.get("label") ?? -1),
      score: Number(values.get("score") ?? 0),
      labels: values.has("labels"),
      layers: new Set(values.getAll("layer")),
    };
  }

  const cards = data.films.map((film) => {
    const card = make(films, "figure", { class: "film" });
    const button = make(card, "button", { type: "button", title: "larger or smaller" });
    button.style.aspectRatio = film.width / film.height;
    button.style.setProperty("--ratio", film.width / film.height);
    make(button, "img", { src: film.src, alt: `film ${film.id}` });
    const svg = button.appendChild(document.createElementNS(SVG, "svg"));
    make(card, "figcaption", { class: "id", title: film.id }, film.id);
    const counted = make(card, "figcaption");
    button.addEventListener("click", () => card.classList.toggle("large"));
    new ResizeObserver(() => drawFilm(svg, film, data, read())).observe(button);
    return { card, svg, counted, film };
  });

  function update() {
    const state = read();
    const output = form.querySelector("output");
    if (output) output.textContent = state.score.toFixed(2);
    let shown = 0, ofGroup = 0;
    for (const { card, svg, counted, film } of cards) {
      const rank = state.group ? film.ranks[state.group] : 0;
      const inGroup = rank !== undefined;
      card.style.order = rank ?? 0;
      const holds = state.label < 0 || Object.values(film.boxes).flat().some(
        (box) => box[0] === state.label && (!box[5].startsWith("false") || box[6] >= state.score),
      );
      card.hidden = !(inGroup && holds);
      ofGroup += inGroup;
      shown += inGroup && holds;
      counted.textContent = count(film, data, state);
      if (!card.hidden) drawFilm(svg, film, data, state);
    }
    said.textContent = `${shown} of ${ofGroup} films`;
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

document.querySelectorAll(".gallery").forEach(setUp);
