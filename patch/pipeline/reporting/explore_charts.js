// Charts of the page as Vega-Lite specifications. `explore_data` in explore.py describes the data.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GREY = "#666666";
const DASHES = [5, 3];
const DOTS = [1.5, 2.5];
// Pixels for each of matplotlib's points.
const SCALE = 1.7;
// Markers on a curve.
const MARKERS = 5;

const format = (value) => value.toFixed(value >= 1000 ? 0 : value >= 100 ? 1 : 2);
const raw = (field, type = "nominal") => ({ field, type, scale: null });
const shown = (fields) => fields.map((field) => ({ field, type: "nominal" }));
const description = (tooltip) => Object.entries(tooltip).map(([name, value]) => `${name}: ${value}`).join("; ");
const layer = (values, mark, encoding) => ({ data: { values }, mark, encoding });

// The non-dominated points by rising sparsity. Their quality is available at every lower sparsity.
function front(points, higher) {
  const sign = higher ? 1 : -1;
  const noWorse = (a, b) => a.target >= b.target && sign * a.value >= sign * b.value;
  const dominated = (a) => points.some((b) => noWorse(b, a) && (b.target !== a.target || b.value !== a.value));
  return points.filter((point) => !dominated(point)).sort((a, b) => a.target - b.target);
}

function point(row, metric, column) {
  const [value, error, published] = row.values[metric.name];
  const series = row.series === null ? { label: "Dense", friendly: true } : DATA.series[row.series];
  const shownError = error === null ? "" : ` ± ${format(error)}`;
  const numbers = { Sparsity: `${row.target} % (achieved ${row.achieved} %)` };
  if (value !== null) numbers.Measured = `${format(value)}${shownError}`;
  if (published !== null) numbers.Published = format(published);
  const about = { Model: DATA.models[row.model].title, Method: series.label };
  if (row.detail) about.Setting = row.detail;
  if (row.tile) about.Tile = row.tile;
  if (row.seeds > 1) numbers.Seeds = row.seeds;
  numbers.Row = row.name;
  const tooltip = { ...about, Metric: metric.title, ...numbers };
  const height = column === "value" ? value : published;
  const drawn = { row, series, x: row.x, target: row.target, value, error, height };
  return { ...tooltip, ...drawn, fields: Object.keys(tooltip), description: description(tooltip) };
}

function quality(rows, { metric, marks }, columns) {
  const sets = columns.map((column) => rows.map((row) => point(row, metric, column)).filter((p) => p.height !== null));
  const heights = sets.flat().map((p) => p.height);
  const edge = metric.higher ? Infinity : DATA.ceiling * Math.min(...heights);
  const fields = [...new Set(sets.flat().flatMap((p) => p.fields))];
  const blank = Object.fromEntries(fields.map((field) => [field, "–"]));
  const tooltip = { tooltip: shown(fields), description: { field: "description" } };
  const lowest = Math.min(...heights), highest = Math.min(edge, Math.max(...heights));
  const scale = metric.higher ? { zero: false } : { type: "log", nice: false, padding: 8 };
  const ticks = metric.higher ? { tickCount: 6 } : { values: logTicks(lowest, highest) };
  const y = { field: "y", type: "quantitative", scale, title: metric.title + (metric.higher ? "" : " (log scale)"),
    axis: { ...ticks, format: "~f" } };
  const sparse = rows.filter((row) => row.series !== null);
  const levels = [...new Set(sparse.map((row) => row.target))].sort((a, b) => a - b);
  const domain = levels.length ? [levels[0] - 2, levels.at(-1) + 2] : [0, 50];
  const x = { field: "x", type: "quantitative", scale: { domain, nice: false }, title: "Target sparsity (%)",
    axis: { values: levels, grid: true, labelOverlap: true } };
  const layers = sets.flatMap((points, index) => {
    const measured = columns[index] === "value", overlaid = columns.length === 2 && !measured;
    points = points.map((p) => ({ ...blank, ...p, y: Math.min(p.height, edge) }));
    const dense = points.filter((p) => p.row.series === null), others = points.filter((p) => p.row.series !== null);
    const stroke = overlaid ? "#999999" : "#000000";
    const made = [
      layer(dense, { type: "rule", strokeDash: DASHES, strokeWidth: 1.4, stroke, aria: false }, { y }),
      // An invisible target for the pointer.
      layer(dense, { type: "rule", strokeWidth: 9, opacity: 0 }, { y, ...tooltip }),
    ];
    if (measured && marks.has("front")) {
      const steps = front(points.filter((p) => p.series.friendly), metric.higher).map((p) => ({ x: p.target, y: p.y }));
      const look = { stroke: "#595959", strokeWidth: 1.5, clip: true, description: "Pareto front" };
      made.push(layer(steps, { type: "line", interpolate: "step-before", ...look }, { x, y }));
    }
    if (measured && marks.has("errors")) {
      const bars = others.filter((p) => p.error !== null && p.height <= edge);
      const ends = bars.map((p) => ({ x: p.x, y: p.height - p.error, y2: p.height + p.error }));
      made.push(layer(ends, { type: "rule", stroke: "#737373", aria: false }, { x, y, y2: { field: "y2" } }));
    }
    return [...made, ...markers(others, !measured, { x, y, ...tooltip })];
  });
  return { width: "container", height: 280, layer: layers };
}

function markers(points, hollow, encoding) {
  // Smaller beside the points of plain runs.
  const settled = (row) => (DATA.settings[0] === "" && row.setting ? 0.7 : 1);
  const side = ({ row, series }) => SCALE * series.size * (hollow ? 1.25 : 1) * settled(row);
  const values = points.map((p) => ({
    ...p,
    shape: p.series.shape,
    fill: hollow ? "transparent" : p.series.fill,
    stroke: hollow ? p.series.fill : p.series.edge,
    strokeWidth: hollow ? 1.6 : SCALE * p.series.width,
    size: side(p) ** 2,
  }));
  const look = { shape: raw("shape"), fill: raw("fill"), stroke: raw("stroke"), size: raw("size", "quantitative"),
    strokeWidth: raw("strokeWidth", "quantitative") };
  return values.length ? [layer(values, { type: "point", opacity: 1 }, { ...encoding, ...look })] : [];
}

// Round numbers in a range of positive numbers, for a logarithmic axis.
function logTicks(low, high) {
  const powers = Array.from({ length: 12 }, (_, power) => 10 ** (power - 3));
  const round = powers.flatMap((power) => [1, 2, 5].map((step) => step * power));
  if (high > 3 * low) return round.filter((tick) => tick >= 0.95 * low && tick <= 1.05 * high);
  const step = round.find((tick) => tick >= (high - low) / 5);
  return Array.from({ length: 8 }, (_, index) => Number((step * (Math.floor(low / step) + index)).toPrecision(6)));
}

function density(map, limit) {
  const values = map.projections.flatMap((projection, line) => map.blocks.map((block, column) => {
    const cell = map.cells[line][column];
    if (cell === null) return { projection, block, Density: "not pruned" };
    const Density = `${cell.toFixed(1)} % (target ${map.target} %)`;
    return { projection, block, Density, deviation: cell - map.target };
  }));
  const color = {
    condition: { test: "isValid(datum.deviation)", field: "deviation", type: "quantitative", legend: null,
      scale: { scheme: "redblue", domain: [-limit, limit] } },
    value: "#d9d9d9",
  };
  const flat = { domain: false, ticks: false };
  return {
    width: "container",
    height: 20 * map.projections.length,
    data: { values },
    mark: { type: "rect", stroke: "#ffffff", strokeWidth: 0.5 },
    encoding: {
      x: { field: "block", type: "ordinal", title: "Block", axis: { ...flat, labelAngle: 0, labelOverlap: true } },
      y: { field: "projection", type: "nominal", sort: null, title: null, axis: flat },
      color,
      tooltip: [{ field: "projection", title: "Projection" }, { field: "block", title: "Block" }, { field: "Density" }],
    },
  };
}

function learning(curves, panel) {
  const points = (curve, key) => {
    const [steps, values] = curve.values[key];
    return steps.map((x, index) => ({ x, y: values[index], Run: curve.label, color: curve.color, index }));
  };
  const x = { field: "x", type: "quantitative", title: "Step", axis: { tickCount: 6, grid: true } };
  const title = DATA.panels[panel];
  const y = { field: "y", type: "quantitative", scale: { zero: false }, title, axis: { tickCount: 6 } };
  const line = { x, y, stroke: raw("color"), detail: raw("Run") };
  const drawn = curves.flatMap((curve) => points(curve, panel));
  const layers = [];
  if (panel === "density") {
    const targeted = curves.filter((curve) => curve.values.target_density);
    const targets = targeted.flatMap((curve) => points(curve, "target_density"));
    const mark = { type: "line", strokeDash: DOTS, strokeWidth: 1.3 };
    layers.push(layer(targets, mark, { ...line, stroke: { value: GREY } }));
  }
  if (panel === "held_out_loss") {
    const initial = curves.filter((curve) => curve.initial !== null).map(({ label, color, initial }) =>
      ({ y: initial, color, Run: `${label}, initial mask`, Value: initial.toPrecision(4) }));
    const encoding = { y, stroke: raw("color"), tooltip: shown(["Run", "Value"]) };
    layers.push(layer(initial, { type: "rule", strokeDash: DASHES }, encoding));
  }
  layers.push(layer(drawn, { type: "line", strokeWidth: 1.6 }, line));
  const marked = curves.flatMap((curve, number) => {
    const all = points(curve, panel), step = Math.max(1, Math.floor(all.length / MARKERS));
    const offset = Math.floor((step * number) / curves.length);
    const series = { ...DATA.series[curve.series], fill: curve.color, edge: "#000000" };
    return all.filter(({ index }) => index % step === offset).map((p) => ({ ...p, row: curve, series }));
  });
  layers.push(...markers(marked, false, { x, y }));
  // Invisible targets for the pointer.
  const numbers = drawn.filter((p) => p.y !== null);
  const hover = numbers.map(({ x, y, Run }) => ({ x, y, Run, Step: x, Value: y.toPrecision(4) }));
  const tooltip = shown(["Run", "Step", "Value"]);
  layers.push(layer(hover, { type: "point", filled: true, opacity: 0, size: 120 }, { x, y, tooltip }));
  return { width: "container", height: 260, layer: layers };
}
