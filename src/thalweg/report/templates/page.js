// Draws the figures of the page: by day and by night, wide and narrow, on the screen and on paper.
(async () => {
  const read = (id) => document.getElementById(id).textContent;
  const { figures, template, night } = JSON.parse(read("figure-data"));
  const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 640px)");

  async function loadPlotly() {
    const bytes = Uint8Array.from(atob(read("plotly-packed")), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.text = await new Response(stream).text();
    document.head.append(script);
  }

  // A copy in which every colour that has a counterpart by night is replaced by it.
  function coloured(value, byNight) {
    if (typeof value === "string") return (byNight && night[value]) || value;
    if (Array.isArray(value)) return value.map((v) => coloured(v, byNight));
    if (!value || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, byNight)]));
  }

  // A long text in lines of at most so many characters.
  function wrapped(text, most) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = line ? line + " " + word : word;
    }
    return lines.join("<br>");
  }

  const isWords = (figure, letter) =>
    figure.data.some((trace) => (letter === "x" && trace.type === "violin") || Array.isArray(trace[letter]) && typeof trace[letter][0] === "string");

  const axes = (layout, letter) =>
    Object.keys(layout).filter((k) => new RegExp("^" + letter + "axis\\d*$").test(k)).map((k) => layout[k]);

  // Panels in fewer columns, in the same order.
  function restack(layout) {
    const { count, columns, narrow: most } = layout.meta.panels;
    const rows = Math.ceil(count / most), before = Math.ceil(count / columns);
    const margin = (layout.margin.t || 0) + (layout.margin.b || 0);
    const panel = Math.max(120, Math.min(200, (layout.height - margin) / before - 40));
    const inner = rows * panel + (rows - 1) * 62;
    layout.height = inner + margin + 40;
    const gapX = most > 1 ? 0.13 : 0, gapY = 62 / inner, w = (1 - gapX * (most - 1)) / most, h = panel / inner;
    const all = Array.from({ length: count }, (_, k) => [layout["xaxis" + (k ? k + 1 : "")],
      layout["yaxis" + (k ? k + 1 : "")]]);
    const titleOf = (i) => (all.map((pair) => pair[i].title).find((t) => t && t.text) || {}).text;
    const titles = [titleOf(0), titleOf(1)];
    const hidden = all.filter(([, y]) => y.showticklabels === false).length;
    all.forEach(([x, y], k) => {
      const row = Math.floor(k / most), column = k % most, left = column * (w + gapX);
      x.domain = [left, left + w];
      y.domain = [Math.max(0, 1 - row * (h + gapY) - h), 1 - row * (h + gapY)];
      if (x.showticklabels === false && !x.visible) x.showticklabels = true;
      if (hidden && hidden < count) y.showticklabels = column === 0;
      x.title = { text: k + most >= count && titles[0] ? titles[0] : "" };
      y.title = { text: column === 0 && titles[1] ? titles[1] : "" };
      const title = (layout.annotations || [])[k];
      if (title) Object.assign(title, { x: left + w / 2, y: y.domain[1] });
    });
  }

  function layoutFor(figure, byNight, width) {
    const layout = coloured(figure.layout, byNight);
    layout.template = coloured(template, byNight);
    // A picture keeps its shape.
    if (figure.data[0].type === "image") layout.height = Math.round(Math.min(1, width / 950) * layout.height) + 10;
    if (width >= 560) return layout;
    if (layout.meta && layout.meta.panels) restack(layout);
    layout.font = Object.assign({}, layout.font, { size: 11 });
    for (const text of layout.annotations || []) text.font = Object.assign({}, text.font, { size: 11 });
    for (const letter of ["x", "y"]) {
      for (const axis of axes(layout, letter)) {
        const share = axis.domain ? axis.domain[1] - axis.domain[0] : 1;
        const length = share * (letter === "x" ? width - (isWords(figure, "y") ? 140 : 50) : (layout.height || 450) - 60);
        if (axis.title && axis.title.text) axis.title.text = wrapped(axis.title.text, Math.max(10, length / 6));
        if (axis.categoryarray) axis.categoryarray = axis.categoryarray.map((label) => wrapped(label, 20));
        if (letter === "x" && !isWords(figure, "x")) axis.nticks = Math.min(axis.nticks || 5, share < 0.3 ? 3 : 5);
      }
    }
    return layout;
  }

  function dataFor(figure, byNight, width) {
    const data = coloured(figure.data, byNight);
    if (width >= 560) return data;
    for (const trace of data) {
      if (trace.colorbar) trace.colorbar.title = { text: "" };
      if (typeof (trace.y || [])[0] === "string") trace.y = trace.y.map((label) => wrapped(label, 20));
    }
    return data;
  }

  async function draw(div, byNight = dark.matches) {
    const figure = figures[div.dataset.figure];
    const width = div.clientWidth;
    if (!width) return; // not the chosen one
    await Plotly.react(div, dataFor(figure, byNight, width), layoutFor(figure, byNight, width),
      { displayModeBar: false, responsive: true });
    div.style.minHeight = "";
  }

  const divs = [...document.querySelectorAll("[data-figure]")];
  const drawAll = async (byNight) => { for (const div of divs) await draw(div, byNight); };

  function nameOf(element) {
    const card = element.closest(".card").querySelector("h2").textContent;
    return (document.title + " " + card).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase();
  }

  function saveFigure(button) {
    const div = button.closest(".drawing").querySelector("[data-figure]");
    const figure = figures[div.dataset.figure], width = Math.max(720, div.clientWidth);
    const layout = Object.assign(layoutFor(figure, false, width), { paper_bgcolor: "#ffffff" });
    const height = layout.height || 450;
    return Plotly.downloadImage({ data: dataFor(figure, false, width), layout },
      { format: button.dataset.save, filename: nameOf(button), width, height, scale: 2 });
  }

  function saveTable(button) {
    const cell = (td) => '"' + td.textContent.replaceAll('"', '""') + '"';
    const rows = [...button.closest(".tabled").querySelectorAll("tr")].map((tr) => [...tr.cells].map(cell).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + rows.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = nameOf(button) + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-save]");
    if (button) (button.dataset.save === "csv" ? saveTable : saveFigure)(button);
  });
  for (const select of document.querySelectorAll("select[data-choose]")) {
    select.addEventListener("change", () => {
      const drawings = select.closest(".card").querySelectorAll(".drawing");
      drawings.forEach((drawing, i) => { drawing.hidden = i !== select.selectedIndex; });
      draw(drawings[select.selectedIndex].querySelector("[data-figure]"));
    });
  }

  if (!divs.length) return;
  try {
    await loadPlotly();
  } catch (error) {
    for (const div of divs) div.textContent = "The charts need a browser of 2023 or later.";
    return;
  }
  await drawAll(dark.matches);
  document.documentElement.dataset.drawn = "yes";
  dark.addEventListener("change", () => drawAll(dark.matches));
  narrow.addEventListener("change", () => drawAll(dark.matches));
  addEventListener("beforeprint", () => drawAll(false));
  addEventListener("afterprint", () => drawAll(dark.matches));
})();
