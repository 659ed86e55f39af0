// Makes choices on explore.html as a reader would and leaves what it saw in the page, as JSON. Put before all scripts.
const walk = { errors: [], views: {} };
for (const kind of ["error", "warn"]) console[kind] = (...values) => walk.errors.push(values.join(" "));
window.alert = (text) => walk.errors.push(`alert ${text}`);
const failed = (event) => walk.errors.push(`${event.type} ${event.message ?? event.reason ?? event.blockedURI}`);
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"]) window.addEventListener(kind, failed);

addEventListener("load", async () => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const pause = () => new Promise((done) => setTimeout(done, 20));
  const drawn = () => document.body.dataset.drawn;
  const change = async (act) => {
    const before = drawn();
    act();
    while (drawn() === before) await pause();
  };
  const front = (path) => path.__data__.mark.items.map(({ datum }) => [datum.x, datum.y]);
  const look = () => Object.fromEntries(all("section").map((section) => [section.id, {
    titles: all("h3", section).map((title) => title.textContent),
    axes: [...new Set(all(".role-axis-title text", section).map((text) => text.textContent))],
    points: all("path[aria-roledescription=point]", section).map((path) => path.getAttribute("aria-label")),
    cells: all(".mark-rect path", section).length,
    fronts: all("path[stroke='#595959']", section).map(front),
    bars: all(".mark-rule line[stroke='#737373']", section).length,
    text: section.innerText,
  }]));
  const hover = async (mark) => {
    mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 300, clientY: 300 }));
    await pause();
    return all("#vg-tooltip-element tr").map((row) => all("td", row).map((cell) => cell.textContent));
  };
  try {
    while (!drawn()) await pause();
    walk.views.first = look();
    walk.tooltips = {
      point: await hover(document.querySelector("#quality path[aria-roledescription=point]")),
      cell: await hover(document.querySelector("#density .mark-rect path")),
      curve: await hover(all("#curves path[aria-roledescription=point]").at(-1)),
    };
    const name = (set) => set.querySelector("legend").firstChild.textContent.trim();
    const labels = (set) => all("label", set).map((label) => label.textContent.trim());
    walk.choices = Object.fromEntries(all("fieldset").map((set) => [name(set), labels(set)]));
    const select = document.querySelector("select[name=metric]");
    walk.metrics = [...select.options].map((option) => option.textContent);
    await change(() => { select.value = "1"; select.dispatchEvent(new Event("change", { bubbles: true })); });
    walk.views.metric = look();
    for (const mark of all("input[name=mark]")) await change(() => mark.click());
    walk.views.unmarked = look();
    await change(() => all("input[name=series]").at(-1).click());
    walk.views.without_a_method = look();
    await change(() => all("input[name=model]")[0].click());
    walk.views.without_a_model = look();
    await change(() => document.querySelector("[data-choice=setting] button").click());
    walk.views.all_settings = look();
    await change(() => document.querySelector("[data-choice=model] [data-check='']").click());
    walk.views.nothing = look();
    walk.overflows = document.documentElement.scrollWidth > document.documentElement.clientWidth;
    walk.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  } catch (error) { walk.errors.push(`walk: ${error.stack}`); }
  const left = document.createElement("script");
  left.type = "application/json";
  left.id = "walk";
  left.textContent = JSON.stringify(walk).replaceAll("<", "\\u003c");
  document.body.append(left);
});
