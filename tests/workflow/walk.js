// Clicks through a report as a reader would and leaves what it saw in the page, as JSON. Appended to report.html.
(async () => {
  const pause = () => new Promise((done) => setTimeout(done, 300));
  const links = () => [...document.querySelectorAll("a")];
  const click = async (link) => { link.click(); await pause(); };
  const shown = async () => {
    const image = document.querySelector("img[src^='data/raw']");
    const frame = document.querySelector("iframe");
    if (image) { await image.decode(); return { image: image.getAttribute("src"), width: image.naturalWidth }; }
    if (!frame) return {};
    const page = frame.contentDocument;
    const cells = [...page.querySelectorAll("tbody td")].map((cell) => cell.textContent);
    const overflows = page.documentElement.scrollWidth > page.documentElement.clientWidth;
    return { page: frame.getAttribute("src"), text: page.body.innerText, cells, overflows };
  };
  const seen = { categories: {} };
  try {
    await pause();
    seen.overview = document.querySelector(".prose").innerText;
    for (const category of Object.keys(categories)) {
      await click(document.querySelector("nav ol a"));
      await click(links().find((link) => link.textContent.trim() === category));
      seen.categories[category] = [];
      for (let index = 0; index < document.querySelectorAll("tbody tr").length; index++) {
        const row = document.querySelectorAll("tbody tr")[index];
        const labels = [...row.querySelectorAll("td")].slice(0, -1).map((cell) => cell.textContent);
        const [view, about] = row.querySelectorAll("td:last-child a");
        await click(view);
        const result = { labels, ...(await shown()) };
        await click(about);
        result.about = document.querySelector(".prose-invert").innerText;
        seen.categories[category].push(result);
        await click(document.querySelector("nav ol a"));
        await click(links().find((link) => link.textContent.trim() === category));
      }
    }
  } catch (error) { seen.error = `${error}`; }
  const left = document.createElement("script");
  left.type = "application/json";
  left.id = "walk";
  left.textContent = JSON.stringify(seen).replaceAll("<", "\\u003c");
  document.body.append(left);
})();
