// Draws the panels of the page anew whenever a choice changes. explore_charts.js describes their charts.
const OPTIONS = { ast: true, renderer: "svg", actions: false };
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
const TEXT = { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
const AXIS = { ...TEXT, gridColor: "#e6e6e6", domainColor: "#555" };
const CONFIG = { font: FONT, background: "#ffffff", view: { stroke: null }, axis: AXIS };

function choices() {
  const checked = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)].map((input) => input.value);
  const numbers = (name) => new Set(checked(name).map(Number));
  const value = (name) => document.querySelector(`select[name=${name}]`)?.value;
  return {
    models: numbers("model"),
    series: numbers("series"),
    settings: DATA.settings.length > 1 ? numbers("setting") : new Set([0]),
    marks: new Set(checked("mark")),
    metric: DATA.metrics[Number(value("metric"))],
    panel: value("panel"),
  };
}

function selected(items, chosen) {
  const wanted = (item) => item.series === null || chosen.series.has(item.series);
  return items.filter((item) => chosen.models.has(item.model) && chosen.settings.has(item.setting) && wanted(item));
}

// A panel for each model, with two charts if the published numbers are those of another model.
function qualityPanels(chosen) {
  const { metric, marks } = chosen;
  return [...chosen.models].flatMap((model) => {
    const rows = selected(DATA.rows, chosen).filter((row) => row.model === model && metric.name in row.values);
    if (!rows.length) return [];
    const info = DATA.models[model];
    const chance = info.chance[metric.name];
    const note = chance === undefined ? "" : `chance ${format(chance)} %`;
    const published = marks.has("published") && rows.some((row) => row.values[metric.name][2] !== null);
    if (!published || !info.published) {
      const columns = published ? ["value", "published"] : ["value"];
      return { charts: [{ title: info.title, note, spec: quality(rows, chosen, columns) }] };
    }
    const title = `${info.published}, as published`;
    return { charts: [
      { title: `${info.title}, measured`, note, spec: quality(rows, chosen, ["value"]) },
      { title, note: "Another model: only the order compares.", spec: quality(rows, chosen, ["published"]) },
    ] };
  });
}

function densityPanels(chosen) {
  const maps = selected(DATA.maps, chosen);
  const deviations = (map) => map.cells.flat().filter((cell) => cell !== null).map((cell) => cell - map.target);
  const all = DATA.maps.flatMap(deviations);
  const limit = Math.max(5, 5 * Math.ceil(Math.max(...all.map(Math.abs)) / 5));
  const scale = document.querySelector("#density .scale");
  scale.replaceChildren(`−${limit}`, document.createElement("i"), `+${limit} points`);
  return maps.map((map) => {
    const title = `${DATA.models[map.model].title}: ${DATA.series[map.series].label}, ${map.title}`;
    return { charts: [{ title, spec: density(map, limit) }] };
  });
}

function curvePanels(chosen) {
  const curves = selected(DATA.curves, chosen).filter((curve) => chosen.panel in curve.values);
  return [...chosen.models].flatMap((model) => {
    const found = curves.filter((curve) => curve.model === model);
    if (!found.length) return [];
    const key = found.map((curve) => ({ ...DATA.series[curve.series], fill: curve.color, label: curve.label }));
    return [{ charts: [{ title: DATA.models[model].title, spec: learning(found, chosen.panel) }], key }];
  });
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function swatch({ shape, fill, edge, width, size }) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "-9 -9 18 18");
  const attributes = { d: shape, fill, stroke: edge, "stroke-width": width, "vector-effect": "non-scaling-stroke",
    transform: `scale(${size})` };
  for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
  svg.append(path);
  return svg;
}

const SECTIONS = { quality: qualityPanels, density: densityPanels, curves: curvePanels };
const views = new Map(Object.keys(SECTIONS).map((name) => [name, []]));

async function draw(name) {
  const place = document.querySelector(`#${name} .panels`);
  if (!place) return;
  views.get(name).forEach((result) => result.finalize());
  const panels = SECTIONS[name](choices());
  const figures = panels.map(({ charts, key = [] }) => element("figure", "",
    ...charts.flatMap(({ title, note }) => [
      element("h3", "", title),
      ...(note ? [element("p", "", note)] : []),
      element("div", "chart"),
    ]),
    element("ul", "key", ...key.map((item) => element("li", "", swatch(item), item.label))),
  ));
  const empty = element("p", "empty", "Nothing is chosen that has these values.");
  place.replaceChildren(...(figures.length ? figures : [empty]));
  const specs = panels.flatMap(({ charts }) => charts.map(({ spec }) => spec));
  const drawn = [...place.querySelectorAll(".chart")].map((chart, index) => {
    // The page keeps its height, and so the place that is scrolled to, until the chart is there.
    chart.style.minHeight = `${specs[index].height + 45}px`;
    return vegaEmbed(chart, { config: CONFIG, ...specs[index] }, OPTIONS);
  });
  views.set(name, await Promise.all(drawn));
}

// Sections that a choice changes; all others change every section.
const AFFECTED = { metric: ["quality"], mark: ["quality"], panel: ["curves"] };
let drawn = Promise.resolve();

function drawAll(name) {
  const sections = AFFECTED[name] ?? Object.keys(SECTIONS);
  drawn = drawn.then(() => Promise.all(sections.map(draw))).then(() => {
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
  });
}

document.addEventListener("change", ({ target }) => drawAll(target.name));
document.addEventListener("click", ({ target }) => {
  if (target.dataset.check === undefined) return;
  const inputs = target.closest("fieldset").querySelectorAll("input");
  for (const input of inputs) input.checked = Boolean(target.dataset.check);
  drawAll();
});
// On a narrow screen the choices would push the figures out of sight.
if (matchMedia("(max-width: 52rem)").matches) document.getElementById("choices").open = false;
drawAll();
